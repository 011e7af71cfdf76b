"""`MorphCallback`: from the Trainer's events to the session, and from its decisions to the Trainer's control."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from morphing_trainer.run.session import Session


class MorphCallback(TrainerCallback):
    """Counts every step, asks the schedule, and ends the running segment when an operation is due.

    `MorphingTrainer` adds it by itself. To be told of the plan and of every operation, give the trainer a
    `TrainerCallback` that defines `on_plan(args, state, control, phases=...)` or
    `on_operation(args, state, control, record=...)`.

    Args:
        evaluated: called with step and raw loss of every evaluation made while training.
    """

    def __init__(self, evaluated: Callable[[int, float], None] = lambda step, loss: None) -> None:
        self.session: Session | None = None
        self.loss_key = "eval_loss"
        self._evaluated = evaluated

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.session is None:
            return
        self.session.step_done(state.global_step)
        state.epoch = self.session.state.cursor.fraction
        if self.session.stopping:
            control.should_training_stop = control.should_save = True
        if self.session.due:
            control.should_epoch_stop = True

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.session is None or metrics is None or self.loss_key not in metrics:
            return
        self.session.evaluated(state.global_step, metrics[self.loss_key])
        self._evaluated(state.global_step, metrics[self.loss_key])
        if self.session.due:
            control.should_epoch_stop = True


class SegmentHandler(CallbackHandler):
    """A callback handler that knows segments: the end of one is not the end of an epoch.

    It also carries the events `on_plan` and `on_operation` to the callbacks that define them.
    """

    def __init__(self, handler: CallbackHandler) -> None:
        super().__init__(
            handler.callbacks, handler.model, handler.processing_class, handler.optimizer, handler.lr_scheduler
        )
        self.session: Session | None = None

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> Any:
        if self.session is not None:
            cut_short = self.session.stopping or (self.session.due and not control.should_training_stop)
            if cut_short and not self.session.epoch_over:
                return control
            self.session.state.epoch_closed = self.session.epoch_over
        return super().on_epoch_end(args, state, control, **kwargs)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> Any:
        if self.session is not None and not self.session.saves:
            control.should_save = False
            return control
        return super().on_save(args, state, control, **kwargs)

    def announce(
        self, event: str, args: TrainingArguments, state: TrainerState, control: TrainerControl, **facts: Any
    ) -> None:
        """Call `event` on the callbacks that define it."""
        for callback in self.callbacks:
            if hasattr(callback, event):
                getattr(callback, event)(args, state, control, **facts)
