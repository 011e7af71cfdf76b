"""What an operation draws, the run does not: its dropout is the same whatever a new model was filled with at first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from tests.support import tiny_model, trainer
from tests.trainer.common import DROPOUT, applied, entry


class Listens(TrainerCallback):
    """The state of torch's generator before each operation, and behind it."""

    def __init__(self) -> None:
        self.before: Any = None
        self.same: list[bool] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before = torch.get_rng_state()

    def on_operation(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.same.append(torch.equal(torch.get_rng_state(), self.before))


def test_operations_draw_nothing_of_the_run(tmp_path: Path) -> None:
    listens = Listens()
    schedule = [entry("stack_layers", 2, 2), entry("set_attn_lora_rank", 2, 1), entry("widen_mlp", 2, 1, noise=0.1)]
    made = trainer(tmp_path, schedule, tiny_model(0, **DROPOUT), callbacks=[listens], eval_strategy="no", max_steps=6)
    made.train()
    assert [name for name, _ in applied(made)] == ["stack_layers", "set_attn_lora_rank", "widen_mlp"]
    assert listens.same == [True, True, True]
