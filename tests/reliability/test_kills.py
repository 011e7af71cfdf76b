"""Killed and told to stop at random moments, again and again: every time it resumes, and the end is the same bits."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from morphing_trainer import LoraArguments
from morphing_trainer.checkpoint import verify
from morphing_trainer.checkpoint.store import checkpoints
from morphing_trainer.run.journal import read_journal
from tests.reliability.nursery import Nursery
from tests.support import same
from tests.trainer.common import entry
from tests.trainer.program import Job, newest, run

SCHEDULE = [
    entry("stack_layers", 2, 3),
    entry("set_batch_size", 6, 2),
    entry("widen_mlp", 1.5, 2, noise=0.1),
    entry("freeze_layer", ["attn.0", "wpe"], 2),
    entry("set_attn_lora_rank", 2, 2),
    entry("set_grad_accum", 3, 1),
    entry("merge_lora_weights", None, 2, reevaluate=True),
    entry("unfreeze_layer", "attn.0", 1),
    entry("change_lr", 0.5, 1),
    entry("set_embedding_lora_rank", 0, 1),
]
"""Depth, width, batch, freezing, ranks and rate: something in every phase of every stage."""

OPTIONS: dict[str, Any] = {
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 2,
    "lr_scheduler_type": "cosine",
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
}


def job(folder: Path, **changes: Any) -> Job:
    """Three stages with texts and mixtures, dropout and accumulation."""
    lora = LoraArguments(4, 4, lora_dropout=0.1)
    return Job(folder, SCHEDULE, "if possible", staged=True, dropout=0.1, lora=lora, options=OPTIONS, **changes)


class Harried:
    """Runs that are killed until there have been enough kills, from their beginning to their end."""

    def __init__(self, nursery: Nursery, folder: Path, seed: int) -> None:
        self.nursery, self.folder, self.draw = nursery, folder, random.Random(seed)
        self.whole = job(folder / "whole")
        begin = time.monotonic()
        self.start(self.whole, 0, expected=(0,))
        self.takes = time.monotonic() - begin
        self.kills = {"SIGKILL": 0, "SIGTERM": 0, "both": 0}
        self.runs = self.resumed = self.in_saves = 0

    def start(self, made: Job, wait: float, signals: str = "", expected: tuple[int, ...] = ()) -> int | None:
        log = made.folder.with_name(f"{made.folder.name}.log")
        child = self.nursery.start(run, made, {}, log=log)
        time.sleep(wait)
        if signals:
            child.send(signal.SIGKILL if signals == "SIGKILL" else signal.SIGTERM)
        if signals == "both":
            time.sleep(self.draw.uniform(0, 0.1))
            child.send(signal.SIGKILL)
        code = child.code()
        assert code in (expected or (0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)), (
            f"{signals} after {wait:.3f} s: {code}\n{log.read_text()[-4000:]}"
        )
        return code

    def go_on(self, kills: int) -> None:
        """One run after the other until so many kills; the last one is let to its end."""
        while sum(self.kills.values()) < kills:
            self.runs += 1
            made = job(self.folder / f"run-{self.runs}")
            while self.start_and_kill(made, kills):
                for checkpoint in checkpoints(made.folder):
                    verify(checkpoint)
            self.compare(made)

    def start_and_kill(self, made: Job, kills: int) -> bool:
        """Whether it was killed, and did not come to its end before."""
        if sum(self.kills.values()) == kills:
            self.start(made, 0, expected=(0,))
            return False
        how = self.draw.choice(list(self.kills))
        before = newest(made)
        if self.start(made, self.draw.uniform(0.02, 0.8 * self.takes), how) == 0:
            return False
        self.kills[how] += 1
        self.resumed += before > 0
        self.in_saves += any(made.folder.glob(".morph-*"))
        return True

    def compare(self, made: Job) -> None:
        assert same(made.weights(), self.whole.weights())
        assert made.losses() == self.whole.losses()
        left, right = (checkpoints(each.folder)[0] for each in (made, self.whole))
        assert left.name == right.name
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            ours, theirs = (torch.load(path / name, weights_only=name != "rng_state.pth") for path in (left, right))
            assert str(ours) == str(theirs), name
        read_journal(made.folder / "journal.jsonl")
        shutil.rmtree(made.folder)


def test_a_few_dozen(nursery: Nursery, tmp_path: Path) -> None:
    harried = Harried(nursery, tmp_path, seed=1)
    events = read_journal(harried.whole.folder / "journal.jsonl")
    done = [event["record"]["operation"] for event in events if event["event"] == "operation"]
    assert done == [line["name"] for line in SCHEDULE]
    assert [event["name"] for event in events if event["event"] == "stage"] == ["texts", "mixture"]
    harried.go_on(24)
    assert min(harried.kills.values()) > 1
    assert harried.resumed > 3


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(2, 6))
def test_several_hundred(nursery: Nursery, tmp_path: Path, seed: int) -> None:
    harried = Harried(nursery, tmp_path, seed)
    harried.go_on(int(os.environ.get("KILLS", "100")))
    print(f"{harried.kills}, {harried.runs} runs, {harried.resumed} from a checkpoint, {harried.in_saves} in a save")


def test_another_seed_would_be_noticed(nursery: Nursery, tmp_path: Path) -> None:
    """Negative control: what is compared is not the same for every run."""
    harried = Harried(nursery, tmp_path, seed=1)
    other = replace(job(tmp_path / "other"), options={**OPTIONS, "seed": 8})
    harried.start(other, 0, expected=(0,))
    assert not same(other.weights(), harried.whole.weights())
