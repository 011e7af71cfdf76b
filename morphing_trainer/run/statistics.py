"""What has been trained on, counted by stage and kept over restarts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from morphing_trainer.errors import CheckpointError


@dataclass(frozen=True)
class Totals:
    """Sums over optimizer steps, of all processes together.

    Attributes:
        steps: optimizer steps.
        samples, tokens: trained on; tokens as fed to the model.
        dropped: samples left out because their text would have gone on across an optimizer step.
        loss_sum: sum of the training loss over the tokens that count.
        loss_tokens: number of tokens that count.
        seconds: wall-clock time from the first step to the last, evaluations and operations included.
    """

    steps: int = 0
    samples: int = 0
    tokens: int = 0
    dropped: int = 0
    loss_sum: float = 0.0
    loss_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: Totals) -> Totals:
        return Totals(*(getattr(self, entry.name) + getattr(other, entry.name) for entry in fields(Totals)))

    @property
    def loss(self) -> float | None:
        """Mean training loss over all tokens that count, None before the first."""
        return self.loss_sum / self.loss_tokens if self.loss_tokens else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Totals:
        """Rebuild what `to_dict` wrote.

        Raises:
            CheckpointError: if it is malformed.
        """
        try:
            counts = {name: int(data[name]) for name in ("steps", "samples", "tokens", "dropped", "loss_tokens")}
            return cls(**counts, loss_sum=float(data["loss_sum"]), seconds=float(data["seconds"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"statistics: are not ones that this library wrote ({error!r})") from error


class LossMeter:
    """The training loss of a stage, summed over its tokens where it is computed: nothing waits for the device.

    Goes on from the sums of `totals`, so that it gives the same bits however often it was read or resumed.
    """

    def __init__(self, totals: Totals) -> None:
        self.begun = (totals.loss_sum, totals.loss_tokens)
        self._sum: torch.Tensor | None = None
        self._tokens: torch.Tensor | int = totals.loss_tokens
        self._step: torch.Tensor | int = 0
        self._before: tuple[torch.Tensor | None, torch.Tensor | int] = (None, self._tokens)

    def step(self, tokens: torch.Tensor | int) -> None:
        """An optimizer step is about to be computed, from so many tokens of all ranks that count."""
        self._step = tokens
        self._before = self._sum, self._tokens
        self._tokens = self._tokens + tokens

    def undo_step(self) -> None:
        """The running step does not count."""
        self._sum, self._tokens = self._before

    def add(self, loss: torch.Tensor) -> None:
        """A micro-batch's part of the mean loss of its step."""
        if self._sum is None:
            kind = torch.float32 if loss.device.type == "mps" else torch.float64
            self._sum = torch.tensor(self.begun[0], dtype=kind, device=loss.device)
        self._sum = self._sum + loss.to(self._sum.dtype) * self._step

    def read(self) -> tuple[float, int]:
        """Sum of the loss and number of tokens, on this rank. Waits for the device."""
        return (self.begun[0] if self._sum is None else float(self._sum)), int(self._tokens)


def overall(totals: Iterable[Totals]) -> Totals:
    """The sum over all stages."""
    return sum(totals, Totals())
