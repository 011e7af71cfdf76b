"""Stages of a training plan, ended by the schedule."""

from __future__ import annotations

from typing import ClassVar, Literal

from morphing_trainer.operations.base import HyperparameterOperation
from morphing_trainer.settings import Settings


class AdvanceStage(HyperparameterOperation):
    """End the current stage of the training plan and begin the next, or the stage that `value` names.

    Stages between are passed over. A stage that has been reached already is not begun again: then nothing changes, and
    a warning says so. After the last stage the run ends. The learning-rate schedule is laid over what is left.
    """

    family: ClassVar[str] = "Plan"
    name: Literal["advance_stage"] = "advance_stage"
    value: str | None = None

    def update(self, settings: Settings, step: int) -> Settings:
        return settings
