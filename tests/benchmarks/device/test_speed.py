"""The contest: who does not fit or fails, and what a step counts."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.device.budget import Figures
from benchmarks.device.contest import BARE, OURS, TRAINER, contests
from benchmarks.device.speed import CONTEST, LARGEST, Speeds, fitting
from benchmarks.flops import training_flops
from benchmarks.throughput import Size
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.models import new_model
from tests.support import tiny_config


class Small(Speeds):
    """On a device that has room for two samples of the bare loop, and for one of the others."""

    def _one(self, kind: str, model: Any, data: Any) -> Figures:
        if self.size.batch > (2 if kind == BARE else 1):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"table": "speed", "kind": kind, "batch": self.size.batch, "model": "m", "mode": "eager", "length": 16}


def test_a_batch_that_does_not_fit_one_is_halved_for_all() -> None:
    lines: list[str] = []
    speeds = Small("m", Size(2, 32, 4, 16, 64), False, 12, 2, lines.append)
    found = list(speeds.round(0))
    assert [(each["kind"], each["batch"]) for each in found] == [(BARE, 2), *((kind, 1) for kind in CONTEST)]
    assert lines[-1] == "out of memory with a batch of 2: all again with 1"
    (contest,) = contests(found)
    assert contest.batch == 1
    assert all(list(runs) == [0] and runs[0]["batch"] == 1 for runs in contest.runs.values())
    assert [each["kind"] for each in speeds.round(1)] == list(CONTEST[::-1])


def test_the_contest_goes_on_when_one_fails() -> None:
    lines: list[str] = []
    speeds = Speeds("tiny", Size(2, 32, 2, 16, 64), False, 12, 12, lines.append)  # no step of a trainer is timed
    found = list(speeds.round(1))
    assert [each["kind"] for each in found if "failed" in each] == [OURS, TRAINER]
    assert all(each["failed"].startswith("ZeroDivisionError") for each in found[:2])
    assert found[2]["losses"]


def test_batches_by_memory() -> None:
    small, medium = Size(12, 768, 1, 1024, 50257), Size(24, 1024, 1, 1024, 50257)
    for size in (small, medium):
        batches = [fitting(size, gigabytes * 10**9) for gigabytes in (1, 8, 16, 24, 40, 80, 140, 1000)]
        assert batches == sorted(batches)
        assert (batches[0], batches[-1]) == (1, LARGEST)
        assert all(batch & (batch - 1) == 0 for batch in batches)
    assert all(fitting(medium, memory * 10**9) <= fitting(small, memory * 10**9) for memory in (8, 24, 40, 80))


def test_flops_are_those_of_a_real_step() -> None:
    """They are counted without computing anything."""
    config = tiny_config(attn_implementation="eager")
    model: Any = new_model(config, seed=0)
    tokens = torch.zeros(1, 16, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(tokens, labels=tokens).loss.backward()
    assert training_flops(ModelSpec(tiny_config()).to_dict(), 16) == counter.get_total_flops()
