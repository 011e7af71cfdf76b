"""What guards must not do: count where nobody asked, begin on a dead model, or judge by no loss at all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from morphing_trainer.errors import ModelError, MorphError
from tests.support import Tokens
from tests.trainer.common import applied, entry
from tests.trainer.test_guarded import guarded, make, run

LOOSE = {"max_loss_increase": 100, "within_steps": 2}


def test_an_evaluation_for_the_guard_fires_no_trigger(tmp_path: Path) -> None:
    """It is made at step 3; the next operation's trigger hears of the one at step 5."""
    schedule = [guarded(wait=1, guard=LOOSE, value=1.1), entry("change_lr", 0.5, trigger_loss=1e9)]
    made = run(tmp_path, schedule, eval_steps=5, max_steps=6, save_strategy="no")
    assert applied(made) == [("change_lr", 1), ("change_lr", 5)]


class Poisons(TrainerCallback):
    """A weight that is not finite, where no loss shows it yet."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 2:
            with torch.no_grad():
                model.transformer.h[-1].mlp.c_fc.weight[0, 0] = math.nan


def test_no_guard_begins_on_a_dead_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="step 2: the model is dead, so there is no state to go back to"):
        run(tmp_path, [guarded(wait=2)], callbacks=[Poisons()], save_strategy="no")


class Unlabelled(Tokens):
    """Evaluated, it tells no loss."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": super().__getitem__(index)["input_ids"]}


def test_no_guard_judges_by_an_older_loss(tmp_path: Path) -> None:
    """The evaluations tell a loss at first, and then none."""

    class Loses(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                made.eval_dataset = Unlabelled(20)

    made = make(tmp_path, [guarded(wait=5)], callbacks=[Loses()], eval_steps=3)
    with pytest.raises(MorphError, match="guard: the evaluation of step 5 gives no eval_loss"):
        made.train()
