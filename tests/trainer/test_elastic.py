"""A run that goes on with 1, 2, 4, 2 and 1 processes, morphs in between, under one and the same command.

Nothing of the batch is given anew: a step keeps its samples, divided among the processes that there are. The sums of a
batch are made in another order then, so losses agree within 2e-5 relative and weights within 2e-4 absolute, in float32.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from morphing_trainer import MorphingTrainer
from morphing_trainer.run.journal import effective, read_journal
from tests.sharded import sharded
from tests.support import arguments, losses, tiny_model
from tests.trainer.common import Numbered, StopsAfter, entry
from tests.trainer.program import finish, started

SAMPLES = 45
SCHEDULE = [
    entry("stack_layers", 2, 3),
    entry("widen_mlp", 1.5, 3, split="newborn"),
    entry("freeze_layer", ["attn.0", "wpe"], 2),
    entry("change_batch_size", 1.5, 2),
    entry("set_attn_lora_rank", 2, 2),
    entry("change_lr", 0.5, 2),
    entry("unfreeze_layer", "attn.0", 2),
]
SEGMENTS = ((1, 4), (2, 8), (4, 12), (2, 15), (1, 18))
"""Processes, and the step at which they stop."""
OPTIONS: dict[str, Any] = {
    "max_steps": 18,
    "lr_scheduler_type": "cosine",
    "eval_strategy": "no",
    "eval_steps": None,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 30,
    "dataloader_drop_last": False,
    "adam_epsilon": 1e-5,  # far above rounding, which Adam would blow up where a gradient is zero
    "disable_tqdm": True,
}


@dataclass(frozen=True)
class Segment:
    """A stretch of the run. Rank r leaves what it read in `<folder>-<processes>-<until>-<r>.json`."""

    folder: Path
    processes: int
    until: int
    way: str = "ddp"
    batch: Mapping[str, int | None] = field(default_factory=lambda: {"per_device_train_batch_size": 8})

    def read(self, rank: int) -> Path:
        return self.folder.with_name(f"{self.folder.name}-{self.processes}-{self.until}-{rank}.json")

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")


class Reads(MorphingTrainer):
    """Remembers the samples that it trained on, by step. What only fills a batch up has no labels."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.read: list[tuple[int, int]] = []
        super().__init__(*args, **options)

    def training_step(self, model: Any, inputs: Any, *args: Any, **options: Any) -> torch.Tensor:
        counted = (inputs["labels"] != -100).any(dim=1)
        self.read += [(self.state.global_step + 1, number) for number in inputs["input_ids"][counted, 0].tolist()]
        return super().training_step(model, inputs, *args, **options)


def go(segment: Segment, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    log = os.open(segment.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if segment.processes > 1 and segment.way == "fsdp2":
        sharded()
    backend = {"ddp_backend": "gloo"} if environment else {}
    args = arguments(segment.folder, **OPTIONS, **backend, **segment.batch)
    made = Reads(
        tiny_model(vocab_size=SAMPLES + 16),
        args,
        schedule=SCHEDULE,
        train_dataset=Numbered(SAMPLES),
        callbacks=[StopsAfter(segment.until)],
    )
    made.train("auto")
    segment.read(int(environment.get("RANK", 0))).write_text(json.dumps(made.read))
    weights = made.whole_weights()
    if made.is_world_process_zero():
        segment.folder.with_suffix(".losses").write_text(json.dumps(losses(made)))
        save_file({name: each.contiguous() for name, each in weights.items()}, segment.folder.with_suffix(".weights"))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def trained(folder: Path, segments: tuple[tuple[int, int], ...], **options: Any) -> dict[int, list[int]]:
    """Step -> the samples that it was computed from, over all processes."""
    read: dict[int, list[int]] = {}
    for processes, until in segments:
        segment = Segment(folder, processes, until, **options)
        codes = finish(started(go, segment, processes), 120)
        assert codes == [0] * processes, segment.log.read_text()[-4000:]
        for rank in range(processes):
            for step, sample in json.loads(segment.read(rank).read_text()):
                read.setdefault(step, []).append(sample)
    return {step: sorted(read[step]) for step in sorted(read)}


@pytest.mark.parametrize(
    "batch",
    [
        pytest.param({"per_device_train_batch_size": 8}, id="device"),
        pytest.param({"batch_size": 8, "per_device_train_batch_size": None}, id="whole", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("way", ["ddp"])
def test_processes_come_and_go(tmp_path: Path, way: str, batch: dict[str, int | None]) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = trained(whole, ((1, 18),), batch=batch)
    read = trained(parts, SEGMENTS, way=way, batch=batch)
    assert read == expected, "every step has the samples that it has without a stop"
    ledger = [sample for step in sorted(read) for sample in read[step]]
    for epoch in range(len(ledger) // SAMPLES):
        assert sorted(ledger[epoch * SAMPLES : (epoch + 1) * SAMPLES]) == list(range(SAMPLES))
    assert len(ledger) > 3 * SAMPLES
    ours, theirs = (json.loads(run.with_suffix(".losses").read_text()) for run in (parts, whole))
    assert len(ours) == 18 and ours == pytest.approx(theirs, rel=2e-5)
    left, right = (load_file(run.with_suffix(".weights")) for run in (parts, whole))
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=2e-4)
    events = effective(read_journal(parts / "journal.jsonl"))
    assert [event["now"] for event in events if event["event"] == "override" and event["name"] == "world_size"] == [
        2,
        4,
        2,
        1,
    ]
    assert len([event for event in events if event["event"] == "operation"]) == len(SCHEDULE)


def test_who_asks_for_another_batch_gets_it(tmp_path: Path) -> None:
    """`per_device_train_batch_size`, given anew, counts on each device."""
    read = trained(tmp_path / "run", ((1, 2),))
    assert [len(samples) for samples in read.values()] == [8, 8]
    read = trained(tmp_path / "run", ((2, 4),), batch={"per_device_train_batch_size": 6})
    assert [len(samples) for samples in read.values()] == [12, 12]
