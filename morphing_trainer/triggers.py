"""When an operation is due. A trigger sees a `Clock` and nothing else, and keeps no state of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from morphing_trainer.operations.base import Count, Steps, whole


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


def _steps(number: int) -> str:
    return "1 step" if number == 1 else f"{number} steps"


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
    """The run has done this share of its optimizer steps, however many they are: 0.7 is after 70 %."""

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


class InStage(Trigger):
    """The run has reached a stage of its training plan.

    `{stage: name}` fires there, or in a later stage if the operations before it took so long. With
    `{stage: {name: ..., then: {...}}}` another condition must hold too, whose waits count from the beginning of the
    stage, or from the previous operation if that was later.
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


class _Composite(Trigger):
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


class AllOf(_Composite):
    """All conditions hold at the same tick. Losses are only seen at evaluations."""

    kind: ClassVar[str] = "all"
    joint: ClassVar[str] = " and "

    def due(self, clock: Clock) -> str | None:
        reasons = [part.due(clock) for part in self.parts]
        return None if None in reasons else self.joint.join(reason for reason in reasons if reason)

    def can_fire(self, evaluates: bool) -> bool:
        return all(part.can_fire(evaluates) for part in self.parts)


class AnyOf(_Composite):
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


def needs_adapters(trigger: Trigger) -> bool:
    """Whether a trigger can only fire where there are adapters."""
    match trigger:
        case RankUseAbove():
            return True
        case InStage(then=then):
            return then is not None and needs_adapters(then)
        case AllOf(parts=parts):
            return any(needs_adapters(part) for part in parts)
        case AnyOf(parts=parts):
            return all(needs_adapters(part) for part in parts)
    return False


def needs_analysis(trigger: Trigger) -> bool:
    """Whether a trigger, or a part of it, asks what an analysis finds."""
    match trigger:
        case RankUseAbove():
            return True
        case InStage(then=then):
            return then is not None and needs_analysis(then)
        case _Composite(parts=parts):
            return any(needs_analysis(part) for part in parts)
    return False


def counts_tokens(trigger: Trigger) -> bool:
    """Whether a trigger, or a part of it, waits for a number of tokens."""
    match trigger:
        case AtTokens():
            return True
        case InStage(then=then):
            return then is not None and counts_tokens(then)
        case _Composite(parts=parts):
            return any(counts_tokens(part) for part in parts)
    return False


def stages_named(trigger: Trigger) -> list[str]:
    """The stages that a trigger speaks of."""
    match trigger:
        case InStage(name=name, then=then):
            return [name, *(stages_named(then) if then else [])]
        case _Composite(parts=parts):
            return [name for part in parts for name in stages_named(part)]
    return []


VALUED: dict[str, type[ValuedTrigger]] = {
    entry.kind: entry for entry in (LossBelow, Waited, AtStep, AtShare, AtTokens, RankUseAbove)
}
COMPOSITE: Mapping[str, type[_Composite]] = {entry.kind: entry for entry in (AllOf, AnyOf)}
KINDS: tuple[str, ...] = (*VALUED, Plateau.kind, InStage.kind, *COMPOSITE)
"""What may stand under `when:`, of what comes with the library."""
