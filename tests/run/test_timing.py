from __future__ import annotations

import time

import pytest

from morphing_trainer.errors import CheckpointError
from morphing_trainer.reporting.times import PARTS, shares
from morphing_trainer.run.timing import Stopwatch, read_profile


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_moment_belongs_to_one_part() -> None:
    clock = Clock()
    watch = Stopwatch({"saving": 5.0}, clock)
    clock.now += 1  # other
    watch.at("forward/backward")
    clock.now += 10
    watch.at("optimizer")
    clock.now += 2
    watch.at("other")
    with watch.during("morphs"):
        clock.now += 3
        with watch.during("evaluation"):
            clock.now += 4
            watch.at("data")  # the block stays what it was for those around it
            clock.now += 0.5
        clock.now += 1
    clock.now += 0.25
    found = watch.profile()
    assert found == {
        "forward/backward": 10,
        "data": 0.5,
        "optimizer": 2,
        "evaluation": 4,
        "morphs": 4,
        "saving": 5,
        "other": 1.25,
    }
    assert sum(found.values()) == clock.now - 100 + 5
    assert sum(shares(found).values()) == pytest.approx(1)


def test_an_exception_ends_a_part() -> None:
    clock = Clock()
    watch = Stopwatch(now=clock)
    with pytest.raises(RuntimeError), watch.during("saving"):
        clock.now += 1
        raise RuntimeError
    clock.now += 2
    assert watch.profile()["saving"] == 1 and watch.profile()["other"] == 2


def test_it_costs_next_to_nothing() -> None:
    """A step takes five of these; the fastest step of a tiny model takes milliseconds."""
    watch = Stopwatch()
    start = time.perf_counter()
    for _ in range(1000):
        watch.at("optimizer")
        with watch.during("data"):
            pass
    assert (time.perf_counter() - start) / 1000 < 2e-4


def test_no_time_has_no_shares_and_parts_without_time_are_left_out() -> None:
    assert shares(dict.fromkeys(PARTS, 0.0)) == {}
    assert shares({"data": 0.0, "saving": 2.0}) == {"saving": 1.0}


def test_a_profile_is_read_back() -> None:
    assert read_profile({"data": 1}) == {**dict.fromkeys(PARTS, 0.0), "data": 1.0}
    for bad in ([1], {"data": "long"}):
        with pytest.raises(CheckpointError, match="timing"):
            read_profile(bad)
