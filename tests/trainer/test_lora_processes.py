"""LoRA operations under sudden death, and on two ranks: what one process does without a break is the measure."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from morphing_trainer import LoraArguments
from morphing_trainer.run.journal import effective, read_journal
from tests.support import same
from tests.trainer.common import entry
from tests.trainer.program import Job, complete, finish, killed_repeatedly, start

# Rank up, rank down, merged anew, other alpha, gone, new, stacked; the embedding's adapter is tied to the head.
SCHEDULE = [
    entry("decrease_attn_lora_scaling", 2, 2),
    entry("set_layer_lora_rank", ["attn.1", 2], 2),
    entry("decrease_vocab_lora_scaling", 0.5, 1),
    entry("merge_lora_weights", None, 2),
    entry("change_lora_alpha", 2, 2),
    entry("stack_layers", 2, 1),
    entry("set_embedding_lora_rank", 0, 2),
    entry("set_layer_lora_rank", ["mlp.*", 3], 1),
    entry("set_embedding_lora_rank", 5, 2),
    entry("merge_lora_weights", None, 2, restart=False),
    entry("set_attn_lora_rank", 4, 1),
]
LORA = LoraArguments(attn_lora_rank_divisor=4, vocab_lora_rank_divisor=4, lora_dropout=0.1)
OPTIONS = {"max_steps": 22, "gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine", "weight_decay": 0.1}
SAVING = {"save_strategy": "steps", "save_steps": 1}


def job(folder: Path, **changes: Any) -> Job:
    options = {**OPTIONS, **changes.pop("options", {})}
    return Job(folder, SCHEDULE, options=options, **{"lora": LORA, "dropout": 0.1, **changes})


def operations(run: Job) -> list[tuple[str, int, int]]:
    events = effective(read_journal(run.folder / "journal.jsonl"))
    return [(e["record"]["operation"], e["step"], e["record"]["tokens"]) for e in events if e["event"] == "operation"]


def test_killed_around_lora_operations(tmp_path: Path) -> None:
    """SIGKILL at four random moments; each time resumed by `True`. The end is the same bits."""
    whole = job(tmp_path / "whole", options=SAVING)
    reference = start(whole)
    killed = job(tmp_path / "killed", options=SAVING, resume="if possible", pause=0.05)
    moments = random.Random(5)
    reached = killed_repeatedly(killed, [moments.uniform(0.0, 0.15) for _ in range(4)])
    assert reached == sorted(reached)
    assert 0 < reached[-1] < 22
    complete(killed)
    assert finish(reference) == [0]
    assert same(killed.weights(), whole.weights())
    assert operations(killed) == operations(whole)
    assert len(operations(whole)) == len(SCHEDULE)
    left, right = (run.folder / "checkpoint-22" for run in (killed, whole))
    for name in ("model.safetensors", "adapter_model.safetensors"):
        assert same(load_file(left / name), load_file(right / name))
    ours, theirs = (torch.load(path / "optimizer.pt", weights_only=True) for path in (left, right))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    """Up to the order of sums, within the tolerances of `test_ranks`; dropout would draw other numbers on each rank."""
    alike = {"dropout": 0.0, "lora": LoraArguments(4, 4)}
    pair = complete(job(tmp_path / "pair", options={"per_device_train_batch_size": 2}, **alike), processes=2)
    single = complete(job(tmp_path / "single", options={"per_device_train_batch_size": 4}, **alike))
    assert operations(pair) == operations(single)
    assert len(operations(pair)) == len(SCHEDULE)
    assert same(pair.weights(0), pair.weights(1))
    assert pair.losses(0) == pair.losses(1)
    assert pair.losses() == pytest.approx(single.losses(), rel=2e-5)
    ours, theirs = pair.weights(), single.weights()
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=2e-4)


def test_two_ranks_resume_exactly(tmp_path: Path) -> None:
    """With both kinds of dropout, from between a merge and a change of alpha."""
    small = {"per_device_train_batch_size": 2}
    whole = complete(job(tmp_path / "whole", options={**SAVING, **small}), processes=2)
    assert same(whole.weights(0), whole.weights(1))
    resume = str(whole.folder / "checkpoint-8")
    resumed = complete(job(tmp_path / "resumed", resume=resume, options=small), processes=2)
    for rank in (0, 1):
        assert same(resumed.weights(rank), whole.weights(rank))
    assert resumed.losses() == whole.losses()
