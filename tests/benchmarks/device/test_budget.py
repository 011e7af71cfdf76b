"""Parts are measured in order, within the time; what is missing has a name."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.device.budget import Account, Figures, Part, carry_out


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def takes(clock: Clock, seconds: float, name: str) -> Iterator[Figures]:
    clock.now += seconds
    yield {"table": name}


def part(clock: Clock, name: str, asked: float, seconds: float, like: str = "", compiles: bool = False) -> Part:
    return Part(name, asked, lambda: takes(clock, seconds, name), like, compiles)


def account(parts: list[Part], seconds: float, clock: Any = time.monotonic) -> tuple[Account, list[str], int]:
    """With the lines told, and how often it was written."""
    lines: list[str] = []
    written: list[Account] = []
    made = carry_out(parts, seconds, lines.append, written.append, clock)
    return made, lines, len(written)


def measured(made: Account) -> list[str]:
    return [figures["table"] for figures in made.figures]


def test_what_does_not_fit_is_left_out_by_name() -> None:
    clock = Clock()
    made, lines, written = account([part(clock, "a", 6, 6), part(clock, "b", 5, 5), part(clock, "c", 4, 4)], 10, clock)
    assert measured(made) == ["a", "c"]
    assert made.left_out == ["b: takes about 5 s, 4 s of 10 s were left"]
    assert "left out: b: takes about 5 s, 4 s of 10 s were left" in lines
    assert written == 2


def test_a_slow_machine_is_noticed() -> None:
    """Twice as slow in what computes; how long it compiles says nothing about that."""
    clock = Clock()
    parts = [part(clock, "compiled", 2, 20, compiles=True), part(clock, "a", 5, 10), part(clock, "b", 6, 12)]
    made, _, _ = account(parts, 41, clock)
    assert measured(made) == ["compiled", "a"]
    assert made.left_out == ["b: takes about 12 s, 11 s of 41 s were left"]


def test_what_was_seen_before_is_known() -> None:
    clock = Clock()
    parts = [part(clock, f"round {turn}", 9, 3, "rounds") for turn in range(4)]
    assert measured(account(parts, 12, clock)[0]) == ["round 0", "round 1", "round 2", "round 3"]


def test_a_part_that_fails_is_told_and_the_others_go_on() -> None:
    def fails() -> Iterator[Figures]:
        yield {"table": "half"}
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand advice")

    made, _, _ = account([Part("a", 1, fails), part(Clock(), "b", 1, 1)], 60)
    assert measured(made) == ["half", "b"]
    assert made.failed == ["a: OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"]
    assert not made.interrupted


def test_when_the_time_is_over_a_part_is_cut_off() -> None:
    """Though it takes every error for one that it can handle."""

    def hangs() -> Iterator[Figures]:
        yield {"table": "half"}
        for _ in range(300):
            try:
                time.sleep(0.01)
            except Exception:
                continue

    began = time.monotonic()
    made, _, _ = account([Part("a", 0.1, hangs), part(Clock(), "b", 1, 1)], 0.5)
    assert time.monotonic() - began < 2
    assert measured(made) == ["half"]
    assert made.failed == ["a: was cut off when the time was over"]
    assert [line.split(":")[0] for line in made.left_out] == ["b"]


def test_ctrl_c_keeps_what_there_is() -> None:
    def interrupted() -> Iterator[Figures]:
        yield {"table": "half"}
        raise KeyboardInterrupt

    made, _, written = account([Part("a", 1, interrupted), part(Clock(), "b", 1, 1)], 60)
    assert made.interrupted and measured(made) == ["half"] and written == 1
    assert (made.failed, made.left_out) == ([], ["a: was interrupted", "b: interrupted before"])
