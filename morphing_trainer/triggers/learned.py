"""Conditions on what the model has learned, which evaluations tell."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BeforeValidator, Field

from morphing_trainer.operations.base import whole
from morphing_trainer.triggers.base import Clock, Trigger, ValuedTrigger


class LossBelow(ValuedTrigger):
    """The raw loss of this evaluation is below a value; `.inf` fires at the first evaluation, 0 never."""

    kind: ClassVar[str] = "loss_below"
    needs_evaluation: ClassVar[bool] = True
    value: Annotated[float, Field(ge=0)]

    def due(self, clock: Clock) -> str | None:
        if not clock.evaluating:
            return None
        loss = clock.evaluations[-1][1]
        # A dead model fires nothing: NaN and infinity are no progress, not even under `.inf`.
        if not math.isfinite(loss) or not loss < self.value:
            return None
        return "at an evaluation" if math.isinf(self.value) else f"loss {loss:.4f} < {self.value:g}"

    def describe(self) -> str:
        return "at the next evaluation" if math.isinf(self.value) else f"loss < {self.value:g}"

    def progress(self, clock: Clock) -> str:
        if math.isinf(self.value) or not clock.evaluations:
            return self.describe()
        return f"loss {clock.evaluations[-1][1]:.4f}, fires below {self.value:g}"

    def can_fire(self, evaluates: bool) -> bool:
        return evaluates and self.value > 0


class Plateau(Trigger):
    """The evaluation loss has stopped falling.

    A straight line is fitted to the last `window` evaluation losses since the previous operation (least squares); the
    trigger fires when it falls by less than `slope` per 1,000 optimizer steps. A window with a NaN or infinite loss
    does not fire.
    """

    kind: ClassVar[str] = "plateau"
    needs_evaluation: ClassVar[bool] = True
    window: Annotated[int, BeforeValidator(whole), Field(ge=2)]
    slope: Annotated[float, Field(ge=0)] = 0.0

    def _fall(self, clock: Clock) -> float | None:
        """Fall of the loss per 1,000 steps over the window, None until the window is full of finite losses."""
        recent = clock.evaluations[-self.window :]
        losses = np.array([loss for _, loss in recent])
        if len(recent) < self.window or not np.isfinite(losses).all():
            return None
        steps = np.array([step for step, _ in recent], dtype=np.float64)
        steps -= steps.mean()
        spread = float((steps**2).sum())
        return -1000.0 * float((steps * losses).sum()) / spread if spread else None

    def due(self, clock: Clock) -> str | None:
        fall = self._fall(clock) if clock.evaluating else None
        if fall is None or fall >= self.slope:
            return None
        return f"plateau: {_course(fall)} over {self.window} evaluations"

    def describe(self) -> str:
        return f"loss falls by less than {self.slope:g} per 1,000 steps ({self.window} evaluations)"

    def progress(self, clock: Clock) -> str:
        fall = self._fall(clock)
        if fall is None:
            return f"plateau: {min(len(clock.evaluations), self.window)} of {self.window} evaluations"
        below = f"fires when it falls by less than {self.slope:g}" if fall < 0 else f"fires below {self.slope:g}"
        return f"{_course(fall)}, {below}"

    def to_data(self) -> dict[str, Any]:
        return {self.kind: {"window": self.window, "slope": self.slope}}


def _course(fall: float) -> str:
    return f"loss {'rises' if fall < 0 else 'falls'} by {abs(fall):.4g} per 1,000 steps"


class RankUseAbove(ValuedTrigger):
    """The adapters use more than this share of their rank, which says that a larger rank may help.

    The share is the effective rank of each adapter's product B A (Roy and Vetterli 2007) over the adapter's rank, the
    mean over all adapters. It is measured every `analysis_evals` evaluations, and the condition holds at those only. An
    adapter that has not moved yet uses nothing; without adapters, or with one that is not finite, it does not fire.
    """

    kind: ClassVar[str] = "rank_use_above"
    needs_evaluation: ClassVar[bool] = True
    value: Annotated[float, Field(ge=0, lt=1)]

    def due(self, clock: Clock) -> str | None:
        if not clock.analysing or clock.rank_use is None or not clock.rank_use > self.value:
            return None
        return f"adapters use {clock.rank_use:.4f} > {self.value:g} of their rank"

    def describe(self) -> str:
        return f"adapters use more than {self.value:g} of their rank"

    def progress(self, clock: Clock) -> str:
        if clock.rank_use is None:
            return self.describe()
        return f"adapters use {clock.rank_use:.4f} of their rank, fires above {self.value:g}"
