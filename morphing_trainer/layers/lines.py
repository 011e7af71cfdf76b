"""A Trainer whose log lines, and mean training loss, are those of the run, wherever it was interrupted in between.

`Trainer` adds losses up from one log line to the next, and for its result; both begin anew whenever training does. Here
the sums are part of a checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.trainer_utils import TrainOutput

from morphing_trainer.layers.rescuing import RescuingTrainer
from morphing_trainer.run.back import Return
from morphing_trainer.run.bundle import Bundle
from morphing_trainer.run.logged import Logged


class LoggingTrainer(RescuingTrainer):
    """The sums behind the log lines of `MorphingTrainer`."""

    _last: tuple[Any, float | None] = (None, None)
    """Norm of the gradients and learning rate of the last step."""
    _concludes = False
    """The line that comes tells what the run came to."""

    def _begin_rescue(self, bundle: Bundle | None, target: Return | None) -> None:
        super()._begin_rescue(bundle, target)
        self._last, self._concludes = (None, None), False

    def _arrived(self, trial: Any) -> None:
        """As inherited, with the sums of the checkpoint; one that was saved without them begins new ones."""
        assert self.session is not None
        logged = self.session.state.logged
        if logged is not None:
            self._tr_loss.fill_(logged.of(self.args.process_index, self.args.world_size))
            self._total_loss_scalar, self._globalstep_last_logged = logged.total, logged.at
            self._last = logged.grad_norm, logged.learning_rate
        super()._arrived(trial)

    def _logged(self) -> Logged:
        """The sums as they are now. All ranks do it together."""
        assert self.session is not None
        known, norm = self.session.state.logged, self._last[0]
        return Logged(
            tuple(figures[0] for figures in self.session.consensus.gathered([float(self._tr_loss)])),
            self._globalstep_last_logged,
            self._total_loss_scalar,
            self._initial_global_step if known is None else known.began,
            norm.item() if isinstance(norm, torch.Tensor) else norm,
            self._last[1],
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.session is not None:
            self.session.state.logged = self._logged()
        super()._save_checkpoint(model, trial)

    def _maybe_log_save_evaluate(
        self,
        tr_loss: torch.Tensor,
        grad_norm: torch.Tensor | float | None,
        model: nn.Module,
        trial: Any,
        epoch: float,
        ignore_keys_for_eval: list[str] | None,
        start_time: float,
        learning_rate: float | None = None,
    ) -> None:
        """As inherited; where no step was made since the checkpoint, the line tells of the one before it."""
        if self.session is not None:
            if grad_norm is None and learning_rate is None:
                grad_norm, learning_rate = self._last
            self._last = grad_norm, learning_rate
        super()._maybe_log_save_evaluate(
            tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate=learning_rate
        )

    # ---- The result ------------------------------------------------------------------------------------------------

    def _finalize_training(self, trial: Any, num_train_samples: Any, start_time: Any) -> TrainOutput:
        """As inherited; the mean training loss is that of the whole run, however often it was interrupted."""
        self._concludes = self.session is not None
        try:
            output: TrainOutput = super()._finalize_training(trial, num_train_samples, start_time)
        finally:
            self._concludes = False
        return output._replace(training_loss=output.metrics.get("train_loss", output.training_loss))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As inherited; see `_finalize_training`."""
        if self._concludes and self.session is not None and "train_loss" in logs:
            logged = self.session.state.logged
            if logged is not None:
                logs["train_loss"] = logged.mean(self.state.global_step, self._total_loss_scalar)
        super().log(logs, start_time)
