"""Makes losses and gradients of a run bad, at chosen steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback


class Spoils(TrainerCallback):
    """Makes the loss, or one gradient, of chosen steps bad: the same ones, whenever the run comes by.

    "loss": by a factor behind the last block, which reaches all gradients. "gradient": of one bias, the loss stays.
    "told": only the loss, by a sum, so that all gradients stay.
    """

    def __init__(self, steps: Sequence[int], value: float = math.nan, what: str = "loss", part: int = 0) -> None:
        self.steps, self.value, self.what, self.part = steps, value, what, part
        self.micro = 0
        self.bad = False
        self.model: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.bad, self.micro = state.global_step + 1 in self.steps, 0
        self.put_on(getattr(model, "module", model))

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.micro += 1

    def put_on(self, model: Any) -> None:
        if model is self.model:
            return
        self.model = model
        if self.what == "loss":
            model.transformer.ln_f.register_forward_hook(self.spoil_output)
        elif self.what == "told":
            model.register_forward_hook(self.spoil_loss)
        else:
            model.transformer.h[0].mlp.c_fc.bias.register_hook(self.spoil_gradient)

    def spoil_output(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        return output * self.value if module.training and self.bad and self.micro == self.part else None

    def spoil_loss(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if module.training and self.bad and self.micro == self.part:
            output.loss = output.loss + self.value

    def spoil_gradient(self, gradient: torch.Tensor) -> torch.Tensor | None:
        return torch.full_like(gradient, self.value) if self.bad and self.micro == self.part else None
