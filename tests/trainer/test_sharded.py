"""FSDP2 on two processes: real shards over gloo. What DDP does without a break is the measure.

Losses and weights of both differ by rounding only: sums over the processes are made in another order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from morphing_trainer import LoraArguments
from morphing_trainer.run.journal import effective, read_journal
from tests.support import same
from tests.trainer.common import entry
from tests.trainer.program import Job, complete, finish, start

GROWTH = [
    entry("stack_layers", 2, 2),
    entry("widen_mlp", 2, 2, noise=0.01),
    entry("freeze_layer", "mlp.0", 1),
    entry("stack_layers", [0, 0, 1, 1, 2, 3], 2, init="identity"),
    entry("unfreeze_layer", "mlp.0", 1),
    entry("widen_mlp", 1.5, 1, split="newborn"),
    entry("change_lr", 0.5, 1),
    entry("reset_optimizer_state", None, 1),
]
RANKS = [
    entry("decrease_attn_lora_scaling", 2, 2),
    entry("set_layer_lora_rank", ["attn.1", 1], 1),
    entry("decrease_vocab_lora_scaling", 0.5, 1),
    entry("merge_lora_weights", None, 2),
    entry("change_lora_alpha", 2, 1),
    entry("stack_layers", 2, 1),
    entry("set_embedding_lora_rank", 0, 1),
    entry("set_layer_lora_rank", ["mlp.*", 3], 1),
    entry("set_embedding_lora_rank", 5, 1),
    entry("merge_lora_weights", None, 1, restart=False),
]
LORA = LoraArguments(attn_lora_rank_divisor=4, vocab_lora_rank_divisor=4)
OPTIONS = {
    "max_steps": 15,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "weight_decay": 0.1,
    "lr_scheduler_type": "cosine",
}
EVERY_STEP = {"save_strategy": "steps", "save_steps": 1}
WAYS = pytest.mark.parametrize(("schedule", "lora"), [(GROWTH, LoraArguments()), (RANKS, LORA)], ids=["growth", "lora"])


def job(folder: Path, schedule: Any, lora: LoraArguments, **changes: Any) -> Job:
    options = {**OPTIONS, **changes.pop("options", {})}
    return Job(folder, schedule, lora=lora, options=options, **{"sharded": True, **changes})


def moments(run: Job) -> list[Any]:
    """What every operation did to the optimizer's memory."""
    events = effective(read_journal(run.folder / "journal.jsonl"))
    return [(e["record"]["operation"], e["record"]["moments"]) for e in events if e["event"] == "operation"]


@WAYS
def test_the_same_as_ddp(schedule: Any, lora: LoraArguments, tmp_path: Path) -> None:
    divided = complete(job(tmp_path / "divided", schedule, lora, options=EVERY_STEP), processes=2)
    copied = complete(job(tmp_path / "copied", schedule, lora, options=EVERY_STEP, sharded=False), processes=2)
    assert moments(divided) == moments(copied)
    assert len(moments(copied)) == len(schedule)
    assert divided.losses(0) == divided.losses(1) == pytest.approx(copied.losses(), rel=1e-5)
    assert same(divided.weights(0), divided.weights(1))
    ours, theirs = divided.weights(), copied.weights()
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=2e-4)

    # A checkpoint of shards is a plain model, as any other; what is sharded in it is the optimizer's memory.
    (left, right) = (run.folder / "checkpoint-9" for run in (divided, copied))
    for file in ("model.safetensors", *(["adapter_model.safetensors"] if lora != LoraArguments() else [])):
        found, expected = load_file(left / file), load_file(right / file)
        assert found.keys() == expected.keys()
        for name in found:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-4)
    assert {path.name for path in left.iterdir()} - {path.name for path in right.iterdir()} == {"optimizer"}
    assert json.loads((left / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]


@WAYS
@pytest.mark.parametrize("steps", [(11,), pytest.param(range(1, 15), marks=pytest.mark.long)], ids=["one", "all"])
def test_resumed_to_the_bit(schedule: Any, lora: LoraArguments, steps: Sequence[int], tmp_path: Path) -> None:
    drops = {"dropout": 0.1, "options": EVERY_STEP}
    whole = complete(job(tmp_path / "whole", schedule, lora, **drops), processes=2)
    for step in steps:
        resume = str(whole.folder / f"checkpoint-{step}")
        resumed = complete(job(tmp_path / f"{step}", schedule, lora, resume=resume, dropout=0.1), processes=2)
        assert same(resumed.weights(), whole.weights())
        assert resumed.losses() == whole.losses()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, True), (1, False)),
        pytest.param((1, False), (2, True), marks=pytest.mark.long),
        pytest.param((2, True), (2, False), marks=pytest.mark.long),
        pytest.param((2, True), (4, True), marks=pytest.mark.long),
        pytest.param((4, True), (2, True), marks=pytest.mark.long),
    ],
)
def test_a_checkpoint_serves_any_number_of_processes(
    before: tuple[int, bool], after: tuple[int, bool], tmp_path: Path
) -> None:
    """From shards to one process, from one process to shards, and from shards to DDP."""

    def options(processes: int) -> dict[str, Any]:
        return {**EVERY_STEP, "per_device_train_batch_size": 4 // processes}

    first = job(tmp_path / "a", RANKS, LORA, sharded=before[1], options=options(before[0]))
    whole = complete(first, processes=before[0])
    resume = str(whole.folder / "checkpoint-8")
    second = job(tmp_path / "b", RANKS, LORA, sharded=after[1], resume=resume, options=options(after[0]))
    resumed = complete(second, processes=after[0])
    assert resumed.losses() == pytest.approx(whole.losses(), rel=1e-5)
    for name, weight in whole.weights().items():
        torch.testing.assert_close(resumed.weights()[name], weight, rtol=0, atol=2e-4)


@pytest.mark.parametrize("best", [False, True], ids=["last", "best"])
def test_the_trained_model_is_saved(best: bool, tmp_path: Path) -> None:
    """The best one is whole when the run has ended; an earlier model there is replaced."""
    options = {"max_steps": 6, "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}
    options |= {"load_best_model_at_end": best, "metric_for_best_model": "loss"}
    done = job(tmp_path / "run", GROWTH[:1], LoraArguments(), saves=True, options=options)
    complete(done, processes=2)
    complete(replace(done, options={**done.options, "overwrite_output_dir": True}), processes=2)
    saved = load_file(done.folder / "model" / "model.safetensors")
    for name, weight in done.weights().items():
        torch.testing.assert_close(saved[name], weight, rtol=0, atol=0)
    assert not list(done.folder.glob(".model-*"))


def test_ranks_that_draw_other_numbers_stop(tmp_path: Path) -> None:
    """Each has other rows of the new model, so what they are computed from is compared."""
    noisy = job(tmp_path / "run", [entry("widen_mlp", 2, 2, noise=0.1)], LoraArguments(), fails=(1, "draw"))
    assert all(code not in (0, None) for code in finish(start(noisy, 2)))
    said = (noisy.results / "0.log").read_text()
    assert "after widen_mlp at step 2: the ranks differ in" in said


def test_an_optimizer_that_begins_with_a_memory_is_refused(tmp_path: Path) -> None:
    refused = job(tmp_path / "run", [], LoraArguments(), options={"optim": "adagrad"})
    assert finish(start(refused, 2)) == [1, 1]
    assert (
        "Adagrad remembers something of the parameters before its first step" in (refused.results / "0.log").read_text()
    )
