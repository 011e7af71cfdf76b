"""Mutated schedules, plans and run configs: read, or refused with one of our errors, quickly and within memory.

CI reads a thousand; the long run (`pytest -m long tests/reliability/test_mutations.py`) 100,000. `MUTATIONS_SEED`
and `MUTATIONS_FIRST` choose others.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

from morphing_trainer.cli.arguments import parse
from morphing_trainer.errors import MorphError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.planning import play
from morphing_trainer.plans import load_plan
from morphing_trainer.schedule import Schedule
from morphing_trainer.settings import Settings
from tests.reliability.mutations import CONFIGS, MARKER, Hang, Kind, case, failing, limited, sources
from tests.support import tiny_config

SEED = int(os.environ.get("MUTATIONS_SEED", "5"))
FIRST = int(os.environ.get("MUTATIONS_FIRST", "0"))
READING = (2.0, 200.0)
"""Seconds and megabytes for one file."""
PLAYING = (30.0, 1000.0)
"""For the dry run of a schedule, which may ask for models of 1,000 layers."""

SPEC = ModelSpec(tiny_config())
SETTINGS = Settings(1e-3, batch_size=8, grad_accum=2, warmup_steps=10, eval_iters=20, eval_interval=50)
reached = dict.fromkeys(("refused", "played", "read"), 0)


def read(kind: Kind, path: Path) -> None:
    """Read the file as the library does, and play its schedule."""
    try:
        with limited(*READING):
            if kind == "config":
                parse(["--config", str(path)])
                schedule = None
            else:
                schedule = Schedule.load(path) if kind == "schedule" else load_plan(str(path)).schedule
                assert Schedule.of(schedule.to_list()).digest == schedule.digest
        reached["read"] += 1
        if schedule is not None:
            with limited(*PLAYING):
                play(schedule, SPEC, SETTINGS, steps=1000)
            reached["played"] += 1
    except MorphError as error:
        assert str(error)
        assert len(str(error)) < 1_000_000
        reached["refused"] += 1


def mutated(folder: Path, first: int, count: int) -> None:
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of training arguments that are unwise
        for index in range(first, first + count):
            if problem := failing(SEED, index, folder, read):
                found.append(problem)
    assert not found, "\n".join([f"{len(found)} of {count} mutated files:", *found[:20]])
    assert not Path(MARKER).exists()
    assert not (folder / MARKER).exists()


def test_the_files_themselves_are_read() -> None:
    """What is mutated is good to begin with, so that most mutations come through to the depths of the readers."""
    for path in sources("schedule"):
        Schedule.load(path)
    assert len(sources("schedule")) > 10
    assert load_plan(str(sources("plan")[0])).stages
    assert len(sources("config")) == len(list(CONFIGS.glob("*.yaml")))


def test_a_case_is_the_same_every_time_and_others_differ() -> None:
    assert [case(1, index) for index in range(30)] == [case(1, index) for index in range(30)]
    assert len({case(1, index).content for index in range(300)}) > 250


def test_the_limits_find_a_hang_and_a_hoard() -> None:
    with pytest.raises(Hang), limited(0.2, 1e9):
        while True:
            pass
    with pytest.raises(AssertionError, match="MB of memory"), limited(10, 50):
        hoard = bytearray(os.urandom(1 << 20) * 2000)
        del hoard


def test_a_failure_is_told_with_its_numbers_and_its_file_stays(tmp_path: Path) -> None:
    def fails(kind: Kind, path: Path) -> None:
        raise KeyError("of no use to anybody")

    problem = failing(3, 4, tmp_path, fails)
    assert problem.startswith("seed 3, case 4")
    assert "KeyError" in problem
    (kept,) = tmp_path.iterdir()
    assert kept.read_bytes() == case(3, 4).content


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    for name in reached:
        reached[name] = 0
    mutated(tmp_path, FIRST, 1000)
    assert min(reached.values()) > 100, reached  # none of the three has become a formality


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(10))
def test_a_hundred_thousand_mutated_files_are_read_or_refused(tmp_path: Path, part: int) -> None:
    mutated(tmp_path, FIRST + 10_000 * part, 10_000)
