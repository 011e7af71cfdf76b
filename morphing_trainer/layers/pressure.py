"""A Trainer that watches memory, and saves what there is before it is too late."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import nn

from morphing_trainer.layers.checkpointing import CheckpointingTrainer
from morphing_trainer.memory.failures import brief
from morphing_trainer.memory.monitor import Monitor, Pressure, over_ranks
from morphing_trainer.run.consensus import RankError
from morphing_trainer.run.reports import RunReports

_log = logging.getLogger("morphing_trainer")


class PressedTrainer(CheckpointingTrainer):
    """Monitoring and emergency checkpoints of `MorphingTrainer`."""

    _reports: RunReports
    _monitor: Monitor | None = None
    _pressure: Pressure
    _doing: Literal["data", "step", "evaluation"] = "data"
    """What the loop is at: fetching, the step itself, or what comes after it."""
    _saved_step: int | None = None
    """The step of the last checkpoint that this run has saved."""

    def _watch_memory(self) -> None:
        """A run begins, whose session is open."""
        assert self.session is not None
        self._monitor = Monitor(self.args.device)
        self._pressure = Pressure(self.args.memory_pressure_percent)
        self._saved_step = None
        self.session.is_pressed = self._is_pressed
        self._forget_peak()

    def _forget_peak(self) -> None:
        if self.args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.args.device)

    # ---- Monitoring ------------------------------------------------------------------------------------------------

    def memory_shown(self) -> list[tuple[str, str]]:
        """Memory and processor load as (label, text), for a display."""
        return self._monitor.latest().shown() if self._monitor else []

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As inherited; with a training loss, also what memory is in use, the most on any rank."""
        if self.session is not None and self._monitor is not None and self.args.log_memory and "loss" in logs:
            figures = self._monitor.latest(0.1).figures()
            everyone = self.session.consensus.gathered(list(figures.values()))
            logs |= over_ranks(list(figures), everyone)
        super().log(logs, start_time)

    # ---- Pressure --------------------------------------------------------------------------------------------------

    def _is_pressed(self) -> bool:
        assert self._monitor is not None
        return self._pressure.threshold is not None and self._pressure.rises(self._monitor.latest().pressure)

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
        """As inherited; then an emergency checkpoint if memory has become short."""
        self._doing = "evaluation"
        super()._maybe_log_save_evaluate(
            tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate=learning_rate
        )
        if self.session is not None and self.session.pressed:
            self.session.pressed = False
            assert self._monitor is not None
            used = self.session.consensus.largest([self._monitor.latest().pressure])[0]
            why = f"{used:.0f} % of memory in use, above memory_pressure_percent {self.args.memory_pressure_percent:g}"
            saved = self._save_emergency(model, trial, why)
            _log.warning("step %d: memory is short (%s); %s.", self.state.global_step, why, saved)

    def _save_emergency(self, model: Any, trial: Any, why: str) -> str:
        """Save the step unless it has been saved; what became of it, in words. A failure is no end of the run."""
        assert self.session is not None
        step = self.session.state.step
        final = self.run_folder / f"checkpoint-{step}"
        try:
            self.finish_write()
        except (OSError, RankError) as error:
            self._saved_step = None
            _log.error("%s", error)
        if self._saved_step != step:
            self._emergency = True
            try:
                self._save_checkpoint(model, trial)
                if not self.session.saves:
                    return "the model is dead and was not saved"
                self.control = self.callback_handler.on_save(self.args, self.state, self.control)
            except (OSError, RankError) as error:
                return f"an emergency checkpoint could not be saved: {brief(error)}"
            finally:
                self._emergency = False
        self._reports.event("emergency", step, why=why, checkpoint=final.name)
        return f"{final.name} is saved"

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with suppress(OSError):  # what stands in its way stands in the way of the checkpoint, which will tell
            self._reports.restore()
        super()._save_checkpoint(model, trial)
        if self.session is not None and self.session.saves:
            self._saved_step = self.state.global_step
