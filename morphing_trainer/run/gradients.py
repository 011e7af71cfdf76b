"""A look at the first gradients: which parameters are trained in name only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


def without_gradient(model: nn.Module) -> list[str]:
    """Names of the parameters that ask for a gradient and have none after a backward pass."""
    return [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None]


class GradientCheck(TrainerCallback):
    """Looks at the gradients of a run's first step, and of the first one after every morph.

    Args:
        model: the unwrapped model of the moment.
        found: told of the step and of the parameters without a gradient, if there are any.
    """

    def __init__(self, model: Callable[[], nn.Module], found: Callable[[int, list[str]], None]) -> None:
        self._model = model
        self._found = found
        self._due = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._due = True

    def on_operation(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, record: Any, **kwargs: Any
    ) -> None:
        self._due = self._due or record.preserving is not None  # of an operation on the architecture

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._due:
            return
        self._due = False
        if names := without_gradient(self._model()):
            self._found(state.global_step + 1, names)
