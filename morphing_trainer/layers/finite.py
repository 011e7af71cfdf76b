"""A Trainer that notices losses and gradients that are NaN or infinite, and may leave out the update of such a step."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from morphing_trainer.layers.observing import ObservingTrainer
from morphing_trainer.run.finite import Finite, what

_log = logging.getLogger("morphing_trainer")


class LastWord(TrainerCallback):
    """Called behind all others, right before the optimizer makes its step."""

    def __init__(self, trainer: FiniteTrainer) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.decide_update()


class FiniteTrainer(ObservingTrainer):
    """What `on_nan` needs to know, and its `skip`."""

    _finite: Finite
    _leaves_out = False
    """Whether the update of the running step is left out."""
    _sum_before: torch.Tensor | None = None
    """Sum of the losses to be logged, before the running step."""

    def _not_finite(self, step: int, code: int) -> None:
        """Act on a step whose loss or gradient was not finite."""
        raise NotImplementedError

    def _check_streak(self) -> None:
        """Act on too many updates left out in a row."""
        raise NotImplementedError

    def _watch_memory(self) -> None:
        super()._watch_memory()
        assert self.session is not None
        self._finite = Finite(self.args.device)
        self.session.what_is_bad = self._bad_by_now

    # ---- Looking ---------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """As inherited; a step begins."""
        if self.session is not None:
            self._finite.begin()
            self._sum_before = self._tr_loss.clone() if self._may_leave_out(self.state.global_step + 1) else None
        found: tuple[list[Any], Any] = super().get_batch_samples(epoch_iterator, num_batches, device)
        return found

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """As inherited; a look at the loss."""
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.session is not None:
            self._finite.loss(loss)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """As inherited; a look at the norm. Under fp16 infinite gradients are usual: they are its scaler's business."""
        found = super()._get_grad_norm(model, grad_norm)
        if self.session is not None and self.accelerator.scaler is None:
            self._finite.gradient(found)
        return found

    def _bad_by_now(self) -> int:
        """At the end of a step: what was not finite, as far as it is known."""
        return self._finite.end(self.state.global_step, counts=not self._leaves_out)

    def _maybe_log_save_evaluate(self, *args: Any, **options: Any) -> None:
        """As inherited, of a run that is well."""
        if self.session is not None:
            code, self.session.bad = self.session.bad, 0
            if not code and self._finite.is_behind and self._matters():
                code = int(sum(figures[0] for figures in self.session.consensus.gathered([self._finite.catch_up()])))
            if code:
                self._not_finite(self._finite.step, code)
            self._check_streak()
        super()._maybe_log_save_evaluate(*args, **options)

    def _matters(self) -> bool:
        """Whether something comes of this step that a bad one must not lead to, or that waits for the device anyway."""
        control = self.control
        asked = (control.should_log, control.should_evaluate, control.should_save)
        return any(asked) or control.should_epoch_stop or control.should_training_stop or self._is_last

    @property
    def _is_last(self) -> bool:
        assert self.session is not None
        return self.session.state.step >= self.session.state.end or self.session.epoch_over

    # ---- Leaving out -----------------------------------------------------------------------------------------------

    def _may_leave_out(self, step: int) -> bool:
        assert self.session is not None
        return self.args.on_nan == "skip" or step in self.session.state.bad.known

    def decide_update(self) -> None:
        """All is ready for the optimizer's step: let it be made, or leave it out, on all ranks alike."""
        if self.session is None:
            return
        state, step = self.session.state, self.state.global_step + 1
        self._leaves_out = step in state.bad.known
        code = 0
        if self._may_leave_out(step):
            code = int(sum(figures[0] for figures in self.session.consensus.gathered([self._finite.now()])))
            self._leaves_out = self._leaves_out or code > 0
        if self.accelerator.scaler is None:  # which leaves such an update out by itself
            # So Accelerate knows that the learning rate's schedule must not go on either.
            self.optimizer._is_overflow = self._leaves_out
            if self._leaves_out:
                for parameter in self.model.parameters():
                    parameter.grad = None
        if not self._leaves_out:
            state.bad = state.bad.made()
            return
        state.bad = state.bad.left_out()
        self._uncount()
        said = what(code) or "gradient"
        self._reports.event("skipped_step", step, what=said, streak=state.bad.streak)
        if self.is_world_process_zero():
            _log.warning("step %d: the %s is NaN or infinite: its update is left out", step, said)

    def _uncount(self) -> None:
        """A step whose update is left out is in no mean loss."""
        assert self.session is not None
        self.session.meter.undo_step()
        if self._sum_before is not None:
            self._tr_loss.copy_(self._sum_before)
            self._globalstep_last_logged += 1
