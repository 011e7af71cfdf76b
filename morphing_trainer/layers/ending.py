"""A Trainer that is resumed behind the last step of an epoch or run, and does what that step still owes."""

from __future__ import annotations

from typing import Any

from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from morphing_trainer.layers.lines import LoggingTrainer


class EndingTrainer(LoggingTrainer):
    """Ends of epochs, and of the run, of which a checkpoint has the step but not what comes after it."""

    def _end_epoch(self, trial: Any, epoch: int, ignore_keys_for_eval: list[str] | None, start_time: float) -> None:
        """Resumed from a checkpoint that was saved at the last step of an epoch, before its end events."""
        assert self.session is not None
        if self.session.state.epoch_closed:
            return
        self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
        self._after_step(trial, epoch, ignore_keys_for_eval, start_time)

    def _end_again(self, trial: Any, epoch: int, ignore_keys_for_eval: list[str] | None, start_time: float) -> None:
        """Resumed at the step at which the run ends: what is still to be done of it.

        That is the end of the epoch, if the run was killed before it. If the run was to end later until now, it is the
        last evaluation, too; then what came of that is saved.
        """
        assert self.session is not None
        step, args = self.state.global_step, self.args
        by_steps = args.eval_strategy == IntervalStrategy.STEPS and args.eval_delay <= step
        seen = any(line.get("step") == step and any(map(_is_evaluation, line)) for line in self.state.log_history)
        if by_steps and not seen:
            self.control.should_evaluate = True
            self.control.should_save = args.save_strategy == SaveStrategy.STEPS
        if self.control.should_evaluate or self.session.wants_verdict:
            self._after_step(trial, epoch, ignore_keys_for_eval, start_time)
        self._end_epoch(trial, epoch, ignore_keys_for_eval, start_time)

    def _after_step(self, trial: Any, epoch: int, ignore_keys_for_eval: list[str] | None, start_time: float) -> None:
        """Log, evaluate and save what is due, where no step was made."""
        self._maybe_log_save_evaluate(
            self._tr_loss, None, self.model_wrapped, trial, epoch, ignore_keys_for_eval, start_time
        )


def _is_evaluation(key: str) -> bool:
    return key.startswith("eval_")
