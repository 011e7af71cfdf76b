"""What the tests of the trainer share: a trainer that remembers what it trained on, and ways to compare runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel, TrainerCallback

from morphing_trainer import MorphingTrainer
from tests.support import Tokens, arguments, tiny_model

HALVES = pytest.mark.parametrize("first", [1, pytest.param(2, marks=pytest.mark.long)], ids=["odd", "even"])
"""The first of every second step to resume from."""

DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}


def entry(name: str, value: Any = None, wait: int | None = None, **options: Any) -> dict[str, Any]:
    """A schedule entry that is due `wait` steps after the one before."""
    waiting = {} if wait is None else {"max_wait_iters": wait}
    return {"name": name, "value": value, **waiting, **options}


class Numbered(Tokens):
    """Tokens whose first one, in a large enough vocabulary, is the number of the sample."""

    def __init__(self, count: int, length: int = 8) -> None:
        super().__init__(count, length, vocab=16)
        self.tokens += count
        self.tokens[:, 0] = torch.arange(count)


class Ledger(MorphingTrainer):
    """Remembers what every micro-batch that was really trained on held, at which step and under which rate."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.trained: list[tuple[int, list[int]]] = []
        super().__init__(*args, **options)

    def training_step(self, model: Any, inputs: Any, *args: Any, **options: Any) -> torch.Tensor:
        self.trained.append((self.state.global_step + 1, inputs["input_ids"][:, 0].tolist()))
        return super().training_step(model, inputs, *args, **options)

    @property
    def samples(self) -> list[int]:
        return [sample for _, batch in self.trained for sample in batch]

    def micro_batches(self) -> dict[int, list[int]]:
        """Sizes of the micro-batches of every step."""
        sizes: dict[int, list[int]] = {}
        for step, batch in self.trained:
            sizes.setdefault(step, []).append(len(batch))
        return sizes


def ledger(folder: Path, count: int, schedule: Any = None, **changes: Any) -> Ledger:
    """A `Ledger` over `Numbered` samples."""
    model = tiny_model(vocab_size=count + 16)
    args = arguments(folder, **{"eval_strategy": "no", "eval_steps": None, **changes})
    return Ledger(model, args, train_dataset=Numbered(count), eval_dataset=Numbered(count), schedule=schedule)


def rates(finished: MorphingTrainer) -> list[float]:
    """The learning rate of every step."""
    return [line["learning_rate"] for line in finished.state.log_history if "learning_rate" in line]


def evaluations(finished: MorphingTrainer) -> list[tuple[int, float]]:
    """Step and loss of every evaluation."""
    return [(line["step"], line["eval_loss"]) for line in finished.state.log_history if "eval_loss" in line]


def applied(finished: MorphingTrainer) -> list[tuple[str, int]]:
    """Operations and the steps after which they were applied."""
    return [(record.operation, record.step) for record in finished._reports.records]


def optimizer_state(trainer: MorphingTrainer) -> dict[str, torch.Tensor]:
    """Every tensor of the optimizer's state, by parameter name, and its param groups' numbers."""
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    found = {}
    for name, parameter in trainer.model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{name}: {key}"] = torch.as_tensor(value).detach().clone()
    for number, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[f"group {number}: {key}"] = torch.tensor(float(value), dtype=torch.float64)
    return found


class StopsAfter(TrainerCallback):
    """Ends the run after a step, as a time limit would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            control.should_training_stop = True


def twin(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    return copy.deepcopy(model)
