"""Conditions on how far the run is."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from morphing_trainer.operations.base import Count, Steps
from morphing_trainer.triggers.base import Clock, ValuedTrigger


class Waited(ValuedTrigger):
    """So many optimizer steps have passed since the previous operation, or since the start; 0 is due at once."""

    kind: ClassVar[str] = "waited"
    value: Steps

    def due(self, clock: Clock) -> str | None:
        return f"waited {_steps(clock.waited)}" if clock.waited >= self.value else None

    def describe(self) -> str:
        return f"after {_steps(self.value)}" if self.value else "at once"

    def progress(self, clock: Clock) -> str:
        return f"{clock.waited} of {_steps(self.value)} waited"


class AtStep(ValuedTrigger):
    """The run has done so many optimizer steps."""

    kind: ClassVar[str] = "at_step"
    value: Steps

    def due(self, clock: Clock) -> str | None:
        return f"step {clock.step}" if clock.step >= self.value else None

    def describe(self) -> str:
        return f"at step {self.value}"

    def progress(self, clock: Clock) -> str:
        return f"step {clock.step} of {self.value}"


class AtShare(ValuedTrigger):
    """The run has done this share of its optimizer steps, however many they are: 0.7 is after 70 %.

    It is a share of the whole run, also inside a `stage`; if the end of the run moves, so does the step.
    """

    kind: ClassVar[str] = "at_share"
    value: Annotated[float, Field(gt=0, lt=1)]

    def step(self, end: int) -> int:
        """The step, to the nearest, of a run that ends at step `end`; never the last, behind which nothing comes."""
        return min(round(self.value * end), end - 1)

    def due(self, clock: Clock) -> str | None:
        if clock.end is None or clock.step < self.step(clock.end):
            return None
        return f"{self._share} of the run, step {clock.step}"

    def describe(self) -> str:
        return f"after {self._share} of the run"

    def progress(self, clock: Clock) -> str:
        return (
            self.describe() if clock.end is None else f"step {clock.step} of {self.step(clock.end)}, {self.describe()}"
        )

    @property
    def _share(self) -> str:
        return f"{100 * self.value:g} %"


class AtTokens(ValuedTrigger):
    """The run has trained on so many tokens."""

    kind: ClassVar[str] = "at_tokens"
    value: Count

    def due(self, clock: Clock) -> str | None:
        return f"{clock.tokens:,} tokens" if clock.tokens >= self.value else None

    def describe(self) -> str:
        return f"at {self.value:,} tokens"

    def progress(self, clock: Clock) -> str:
        return f"{clock.tokens:,} of {self.value:,} tokens"


def _steps(number: int) -> str:
    return "1 step" if number == 1 else f"{number} steps"
