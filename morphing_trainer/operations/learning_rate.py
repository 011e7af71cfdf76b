"""Learning rate and its schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from morphing_trainer.operations.base import Factor, HyperparameterOperation, Nothing, Steps
from morphing_trainer.settings import Settings


class ChangeLr(HyperparameterOperation):
    """Multiply the learning rate, on top of any learning-rate scheduler: lr(t) = value * lr * f(t).

    Source: usual practice; lr scales with the square root of the batch ratio for Adam (Malladi et al. 2022).
    """

    family: ClassVar[str] = "Learning rate"
    name: Literal["change_lr"] = "change_lr"
    value: Factor

    def update(self, settings: Settings, step: int) -> Settings:
        return replace(settings, learning_rate=settings.learning_rate * self.value)


class SetLr(HyperparameterOperation):
    """Set the peak learning rate; the scheduler's factor f(t) goes on multiplying it. All param groups scale alike."""

    family: ClassVar[str] = "Learning rate"
    name: Literal["set_lr"] = "set_lr"
    value: Factor

    def update(self, settings: Settings, step: int) -> Settings:
        return replace(settings, learning_rate=self.value)


class ChangeWarmupIters(HyperparameterOperation):
    """Multiply the warm-up length of the learning-rate schedule, rounded down to whole steps.

    The schedule's shape changes from this step on: a longer warm-up that is already over moves the peak, one that is
    still running slows down. Usually followed by `reset_lr_schedule`.
    """

    family: ClassVar[str] = "Learning rate"
    name: Literal["change_warmup_iters"] = "change_warmup_iters"
    value: Factor

    def update(self, settings: Settings, step: int) -> Settings:
        return replace(settings, warmup_steps=int(settings.warmup_steps * self.value))


class SetWarmupIters(HyperparameterOperation):
    """Set the warm-up length of the learning-rate schedule, in optimizer steps; 0 is none."""

    family: ClassVar[str] = "Learning rate"
    name: Literal["set_warmup_iters"] = "set_warmup_iters"
    value: Steps

    def update(self, settings: Settings, step: int) -> Settings:
        return replace(settings, warmup_steps=self.value)


class ResetLrSchedule(HyperparameterOperation):
    """Start the learning-rate schedule again: warm-up from here, then decay over the steps that are left.

    Source: re-warming after growth, 150-200 steps in Staged Training (Shen et al. 2022).
    """

    family: ClassVar[str] = "Learning rate"
    name: Literal["reset_lr_schedule"] = "reset_lr_schedule"
    value: Nothing = None

    def update(self, settings: Settings, step: int) -> Settings:
        return replace(settings, lr_anchor=step)
