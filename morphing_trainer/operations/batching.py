"""Batch size and gradient accumulation. They really change what one optimizer step is computed from."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from morphing_trainer.operations.base import Count, Factor, HyperparameterOperation
from morphing_trainer.settings import Settings


class ChangeBatchSize(HyperparameterOperation):
    """Multiply the per-device training batch: max(1, floor(batch * value)).

    In a run whose length is given in epochs, a larger batch leaves fewer steps, and the learning-rate schedule is laid
    over the new length at once: the rate jumps. Give `max_steps`, or let `reset_lr_schedule` follow.

    Source: batch-size warm-up (arXiv 2505.23971) saved 43 % of the optimizer steps of a 1B model.
    """

    family: ClassVar[str] = "Batch"
    name: Literal["change_batch_size"] = "change_batch_size"
    value: Factor

    def update(self, settings: Settings, step: int) -> Settings:
        return replace(settings, batch_size=max(1, int(settings.batch_size * self.value)))


class SetBatchSize(HyperparameterOperation):
    """Set the per-device training batch."""

    family: ClassVar[str] = "Batch"
    name: Literal["set_batch_size"] = "set_batch_size"
    value: Count

    def update(self, settings: Settings, step: int) -> Settings:
        return replace(settings, batch_size=self.value)


class SetBatchSizeRelative(HyperparameterOperation):
    """Shrink the per-device training batch to the fraction `value`, down to a multiple of 8, at least 8."""

    family: ClassVar[str] = "Batch"
    name: Literal["set_batch_size_relative"] = "set_batch_size_relative"
    value: Annotated[float, Field(gt=0, le=1)]

    def update(self, settings: Settings, step: int) -> Settings:
        return replace(settings, batch_size=max(8, int(settings.batch_size * self.value) // 8 * 8))


class ChangeGradAccum(HyperparameterOperation):
    """Multiply the number of micro-batches per optimizer step: max(1, floor(steps * value))."""

    family: ClassVar[str] = "Batch"
    name: Literal["change_grad_accum"] = "change_grad_accum"
    value: Factor

    def update(self, settings: Settings, step: int) -> Settings:
        return replace(settings, grad_accum=max(1, int(settings.grad_accum * self.value)))


class SetGradAccum(HyperparameterOperation):
    """Set the number of micro-batches per optimizer step."""

    family: ClassVar[str] = "Batch"
    name: Literal["set_grad_accum"] = "set_grad_accum"
    value: Count

    def update(self, settings: Settings, step: int) -> Settings:
        return replace(settings, grad_accum=self.value)
