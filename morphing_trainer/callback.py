"""`MorphCallback`: from the Trainer's events to the session, and from its decisions to the Trainer's control."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_utils import IntervalStrategy

from morphing_trainer.run.session import Session

_log = logging.getLogger("morphing_trainer")


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
        self.analyse: Callable[[int], float | None] = lambda step: None
        """Called at every evaluation that counts: the share of their rank that adapters use, where that is measured."""
        self.end_moved: Callable[[], None] = lambda: None
        """Called when the run turns out to end at another step than it seemed."""
        self._evaluated = evaluated

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.session is None:
            return
        self.session.step_done(state.global_step)
        run = self.session.state
        state.epoch = self.session.epochs
        if state.max_steps != run.end:
            self.end_moved()
        if run.stage_over and len(self.session.course.stages) > 1:
            control.should_epoch_stop = True
            # At the end of an epoch a run that evaluates by epochs will do so by itself.
            control.should_evaluate = control.should_evaluate or args.eval_strategy == IntervalStrategy.STEPS
        if self.session.stopping:
            control.should_training_stop = control.should_save = True
            if state.is_world_process_zero:
                _log.info("step %d: %s received: saving, then stopping", state.global_step, self.session.stop.name)
        if self.session.due:
            control.should_epoch_stop = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A line of the history also tells the stage, and tokens and seconds until then."""
        if self.session is None:
            return
        run = self.session.state
        place: dict[str, Any] = {
            "tokens": run.tokens,
            "seconds": round(self.session.seconds(), 3),
            "stage": run.stage_name,
        }
        state.log_history[-1].update(place)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.session is None:
            return
        self.session.count_losses()
        if metrics is None or self.loss_key not in metrics:
            return
        use = self.analyse(state.global_step) if self.session.listening else None
        self.session.evaluated(state.global_step, metrics[self.loss_key], use)
        self._evaluated(state.global_step, metrics[self.loss_key])
        if self.session.due:
            control.should_epoch_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.session is not None:
            self.session.count_losses()


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
            over = self.session.epoch_over or self.session.state.stage_over
            if cut_short and not over:
                return control
            self.session.state.epoch_closed = over
        return super().on_epoch_end(args, state, control, **kwargs)

    def on_evaluate(  # type: ignore[override]  # as in the class above
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any, **kwargs: Any
    ) -> Any:
        """As inherited; what only shows what an operation did is no evaluation to stop by."""
        everyone = self.callbacks
        if self.session is not None and not self.session.listening:
            self.callbacks = [each for each in everyone if not isinstance(each, EarlyStoppingCallback)]
        try:
            return super().on_evaluate(args, state, control, metrics, **kwargs)
        finally:
            self.callbacks = everyone

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> Any:
        if self.session is not None and (not self.session.saves or self.session.writing):
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
