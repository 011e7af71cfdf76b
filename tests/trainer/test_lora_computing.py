"""Runs with LoRA under the ways to save memory and time: recomputed activations, mixed and half precision."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from morphing_trainer.models import new_model
from tests.support import losses, same, tiny_config, trainer, weights
from tests.trainer.common import applied, entry
from tests.trainer.test_lora_runs import QUICK, adapted

COMPUTING = [entry("set_attn_lora_rank", 4, 2), entry("stack_layers", 2, 1), entry("merge_lora_weights", None, 2)]


def test_recomputing_activations_changes_nothing(tmp_path: Path) -> None:
    """Also with all of the base frozen, where no input of a block takes a gradient."""
    for number, freeze in enumerate(("targets", "all")):
        model = adapted(lora_r=2, lora_freeze_base=freeze, lora_dropout=0.1)
        found = []
        for recompute in (False, True):
            folder = tmp_path / f"{number}-{recompute}"
            run = trainer(folder, COMPUTING, model, activation_checkpointing=recompute, **QUICK)
            run.train()
            assert run.model.is_activation_checkpointing == recompute
            found.append(run)
        assert losses(found[0]) == pytest.approx(losses(found[1]), rel=1e-6)
        assert losses(found[0])[-1] < losses(found[0])[0]


def test_mixed_precision(tmp_path: Path) -> None:
    """Weights, adapters and moments are float32 throughout; losses are within 2 % of float32's."""
    model = adapted(lora_r=2, vocab_lora_rank_divisor=0, lora_target_modules=["c_attn", "wte"])
    runs = []
    for bf16 in (False, True):
        run = trainer(tmp_path / str(bf16), COMPUTING, model, bf16=bf16, **QUICK)
        run.train()
        runs.append(run)
    assert {weight.dtype for weight in weights(runs[1]).values()} == {torch.float32}
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=0.02)
    assert losses(runs[1]) != losses(runs[0])


def test_half_precision_weights(tmp_path: Path) -> None:
    """A model in bfloat16: its adapters are float32, in the checkpoint as well, and what remains is bfloat16."""
    model = new_model(tiny_config(dtype=torch.bfloat16), 0)
    schedule = [*COMPUTING, entry("set_attn_lora_rank", 0, 1)]
    options = {**QUICK, "max_steps": 7, "save_strategy": "steps", "save_steps": 4}
    run = trainer(tmp_path / "whole", schedule, model, **options)
    run.train()
    assert len(applied(run)) == 4
    assert all(math.isfinite(loss) for loss in losses(run))
    assert {weight.dtype for weight in weights(run).values()} == {torch.bfloat16}
    saved = load_file(tmp_path / "whole" / "checkpoint-4" / "adapter_model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.float32}
    resumed = trainer(tmp_path / "resumed", schedule, model, **options)
    resumed.train(str(tmp_path / "whole" / "checkpoint-4"))
    assert same(weights(resumed), weights(run))
