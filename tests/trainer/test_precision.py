"""Mixed precision, activation checkpointing and gradient clipping: through a morph, and through a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from morphing_trainer import MorphingTrainer
from morphing_trainer.errors import ConfigError
from tests.support import Tokens, arguments, losses, same, tiny_model, trainer, weights
from tests.trainer.common import entry, optimizer_state

SCHEDULE = [entry("stack_layers", 2, 2), entry("widen_mlp", 2, 2), entry("set_attn_lora_rank", 2, 2)]
OPTIONS: dict[str, Any] = {
    "max_steps": 9,
    "eval_strategy": "no",
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 20,
    "gradient_accumulation_steps": 2,
}
KINDS: dict[str, dict[str, Any]] = {
    "bf16": {"bf16": True},
    "checkpointing": {"activation_checkpointing": True},
    "clipping": {"max_grad_norm": 0.05},
}


def run(folder: Path, **changes: Any) -> MorphingTrainer:
    return trainer(folder, SCHEDULE, tiny_model(resid_pdrop=0.1), **{**OPTIONS, **changes})


@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_before_and_after_every_morph_is_exact(tmp_path: Path, kind: str) -> None:
    whole = run(tmp_path / "whole", **KINDS[kind])
    whole.train()
    plain = run(tmp_path / "plain")
    plain.train()
    assert losses(whole)[-1] < losses(whole)[0]
    assert same(weights(whole), weights(plain)) is (kind == "checkpointing"), "it has an effect, or must have none"
    for step in (2, 6):
        resumed = run(tmp_path / str(step), **KINDS[kind])
        resumed.train(str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert same(weights(resumed), weights(whole)), step
        assert same(optimizer_state(resumed), optimizer_state(whole)), step


def test_weights_and_memory_stay_in_float32_under_bf16(tmp_path: Path) -> None:
    done = run(tmp_path, bf16=True)
    done.train()
    assert {weight.dtype for weight in weights(done).values()} == {torch.float32}
    assert {value.dtype for name, value in optimizer_state(done).items() if "exp_avg" in name} == {torch.float32}


def test_grown_blocks_recompute_too(tmp_path: Path) -> None:
    done = run(tmp_path, activation_checkpointing=True)
    done.train()
    blocks = [module for module in done.model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert len(blocks) == 4
    assert all(block.gradient_checkpointing for block in blocks)


class Norms(MorphingTrainer):
    """Notes the norm of the gradients that the optimizer is given."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.norms: list[float] = []
        super().__init__(*args, **options)

    def _clip_grad_norm(self, model: Any) -> Any:
        before = super()._clip_grad_norm(model)
        grads = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(grads)))
        return before


def test_gradients_are_clipped_in_every_model(tmp_path: Path) -> None:
    args = arguments(tmp_path, **{**OPTIONS, "save_strategy": "no", "max_grad_norm": 0.05})
    done = Norms(tiny_model(), args, train_dataset=Tokens(), schedule=SCHEDULE)
    done.train()
    logged = [line["grad_norm"] for line in done.state.log_history if "grad_norm" in line]
    assert min(logged) > 0.05, "the norm before clipping is logged"
    assert done.norms == pytest.approx([0.05] * 9, rel=1e-4)


def test_fp16_needs_a_gpu_and_says_so_before_anything(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fp16: needs a GPU, and this run is on the CPU; use bf16 there"):
        run(tmp_path / "run", fp16=True)
    assert not (tmp_path / "run").exists()
