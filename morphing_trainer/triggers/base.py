"""What a trigger is: it sees a `Clock` and nothing else, and keeps no state of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class Clock:
    """All that a trigger sees.

    Attributes:
        step: optimizer steps done.
        epoch: passes over the data, with fraction.
        tokens: training tokens seen, over all processes.
        train_seconds: time spent training.
        waited: optimizer steps since the previous operation, or since the start.
        evaluations: (step, raw loss) of the evaluations since the previous operation, newest last. A raw loss is what
            the model gave, NaN included; no average, no filter.
        evaluating: this tick is an evaluation, its loss the last of `evaluations`.
        rank_use: share of the rank that adapters use (`analysis.rank_use`), as last measured since the previous
            operation; None if it was not, or there are no adapters.
        analysing: `rank_use` was measured at this tick.
        stages: the stages of the training plan that have been reached, and the optimizer step at which each began.
        end: the optimizer step at which the run ends, as far as is known; None if it is not.
    """

    step: int
    epoch: float
    tokens: int
    train_seconds: float
    waited: int
    evaluations: tuple[tuple[int, float], ...] = ()
    evaluating: bool = False
    rank_use: float | None = None
    analysing: bool = False
    stages: Mapping[str, int] = field(default_factory=dict)
    end: int | None = None


class Trigger(BaseModel):
    """Base of all triggers: pure functions of the clock."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    needs_evaluation: ClassVar[bool] = False

    def due(self, clock: Clock) -> str | None:
        """Why the operation is due now, or None."""
        raise NotImplementedError

    def describe(self) -> str:
        """The condition in words."""
        raise NotImplementedError

    def progress(self, clock: Clock) -> str:
        """How far the condition is, in words."""
        raise NotImplementedError

    def to_data(self) -> dict[str, Any]:
        """The condition as it stands under `when:`."""
        raise NotImplementedError

    def can_fire(self, evaluates: bool) -> bool:
        """Whether it can ever fire in a run that does (not) evaluate."""
        return evaluates or not self.needs_evaluation


class ValuedTrigger(Trigger):
    """A condition with one value; those of your own are such, see `morphing_trainer.register`."""

    kind: ClassVar[str]
    value: Any

    def to_data(self) -> dict[str, Any]:
        return {self.kind: self.value}
