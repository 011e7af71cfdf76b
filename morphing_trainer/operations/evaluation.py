"""How much an evaluation reads, and how often it runs."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from morphing_trainer.errors import OperationError
from morphing_trainer.operations.base import Count, Factor, HyperparameterOperation
from morphing_trainer.settings import Settings


class ChangeEvalIters(HyperparameterOperation):
    """Multiply the number of batches that an evaluation reads: max(1, floor(batches * value)). Needs `eval_iters`."""

    family: ClassVar[str] = "Evaluation"
    name: Literal["change_eval_iters"] = "change_eval_iters"
    value: Factor

    def update(self, settings: Settings, step: int) -> Settings:
        if settings.eval_iters is None:
            raise OperationError(
                "eval_iters is not set, so every evaluation reads the whole set and there is nothing to multiply; "
                "set eval_iters in the config, or use set_eval_iters"
            )
        return replace(settings, eval_iters=max(1, int(settings.eval_iters * self.value)))


class SetEvalIters(HyperparameterOperation):
    """Set the number of batches that an evaluation reads."""

    family: ClassVar[str] = "Evaluation"
    name: Literal["set_eval_iters"] = "set_eval_iters"
    value: Count

    def update(self, settings: Settings, step: int) -> Settings:
        return replace(settings, eval_iters=self.value)


def _interval(settings: Settings) -> int:
    if settings.eval_interval is None:
        raise OperationError(
            "evaluation does not run by steps, so it has no interval; set eval_strategy: steps and eval_steps"
        )
    return settings.eval_interval


class ChangeEvalInterval(HyperparameterOperation):
    """Multiply the number of optimizer steps between evaluations: max(1, floor(steps * value))."""

    family: ClassVar[str] = "Evaluation"
    name: Literal["change_eval_interval"] = "change_eval_interval"
    value: Factor

    def update(self, settings: Settings, step: int) -> Settings:
        return replace(settings, eval_interval=max(1, int(_interval(settings) * self.value)))


class SetEvalInterval(HyperparameterOperation):
    """Set the number of optimizer steps between evaluations."""

    family: ClassVar[str] = "Evaluation"
    name: Literal["set_eval_interval"] = "set_eval_interval"
    value: Count

    def update(self, settings: Settings, step: int) -> Settings:
        _interval(settings)
        return replace(settings, eval_interval=self.value)
