"""Conditions that hold others."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import Field

from morphing_trainer.triggers.base import Clock, Trigger


class InStage(Trigger):
    """The run has reached a stage of its training plan.

    `{stage: name}` fires there, or in a later stage if the operations before it took so long. With
    `{stage: {name: ..., then: {...}}}` another condition must hold too, whose waits count from the beginning of the
    stage, or from the previous operation if that was later. Steps, shares and tokens count from the start of the run,
    and the condition may also come true in a later stage.
    """

    kind: ClassVar[str] = "stage"
    name: str
    then: Trigger | None = None

    def _inside(self, clock: Clock) -> Clock | None:
        """The clock as it runs in the stage, None before."""
        if self.name not in clock.stages:
            return None
        return replace(clock, waited=min(clock.waited, clock.step - clock.stages[self.name]))

    def due(self, clock: Clock) -> str | None:
        inside = self._inside(clock)
        if inside is None:
            return None
        if self.then is None:
            return f"stage {self.name}"
        reason = self.then.due(inside)
        return None if reason is None else f"stage {self.name}: {reason}"

    def describe(self) -> str:
        return f"in stage {self.name}" + (f": {self.then.describe()}" if self.then else "")

    def progress(self, clock: Clock) -> str:
        inside = self._inside(clock)
        if inside is None or self.then is None:
            return self.describe()
        return f"stage {self.name}: {self.then.progress(inside)}"

    def to_data(self) -> dict[str, Any]:
        return {self.kind: {"name": self.name, "then": self.then.to_data()} if self.then else self.name}

    def can_fire(self, evaluates: bool) -> bool:
        return self.then is None or self.then.can_fire(evaluates)


class Composite(Trigger):
    """Several conditions together."""

    kind: ClassVar[str]
    joint: ClassVar[str]
    parts: Annotated[tuple[Trigger, ...], Field(min_length=1)]

    @property
    def _shown(self) -> tuple[Trigger, ...]:
        """The conditions worth naming."""
        return self.parts

    def describe(self) -> str:
        return self.joint.join(part.describe() for part in self._shown)

    def progress(self, clock: Clock) -> str:
        return self.joint.join(part.progress(clock) for part in self._shown)

    def to_data(self) -> dict[str, Any]:
        return {self.kind: [part.to_data() for part in self.parts]}


class AllOf(Composite):
    """All conditions hold at the same tick. Losses are only seen at evaluations."""

    kind: ClassVar[str] = "all"
    joint: ClassVar[str] = " and "

    def due(self, clock: Clock) -> str | None:
        reasons = [part.due(clock) for part in self.parts]
        return None if None in reasons else self.joint.join(reason for reason in reasons if reason)

    def can_fire(self, evaluates: bool) -> bool:
        return all(part.can_fire(evaluates) for part in self.parts)


class AnyOf(Composite):
    """Any condition holds."""

    kind: ClassVar[str] = "any"
    joint: ClassVar[str] = " or "

    @property
    def _shown(self) -> tuple[Trigger, ...]:
        """`trigger_loss: 0` beside a wait is only a way to write "never by loss"."""
        return tuple(part for part in self.parts if part.can_fire(evaluates=True)) or self.parts

    def due(self, clock: Clock) -> str | None:
        return next((reason for part in self.parts if (reason := part.due(clock))), None)

    def can_fire(self, evaluates: bool) -> bool:
        return any(part.can_fire(evaluates) for part in self.parts)
