"""A Trainer that judges guarded operations by the loss after them, and undoes those that have not worked out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from morphing_trainer.errors import GuardError, ModelError, MorphError
from morphing_trainer.layers.ending import EndingTrainer
from morphing_trainer.memory.rng import RandomState
from morphing_trainer.run.back import GoingBack, Return
from morphing_trainer.run.bundle import Bundle
from morphing_trainer.run.guard import Guard, Verdict
from morphing_trainer.run.state import RunState
from morphing_trainer.schedule_entry import Entry

_log = logging.getLogger("morphing_trainer")


class GuardedTrainer(EndingTrainer):
    """Guards of `MorphingTrainer`."""

    _asked_for = False
    """The evaluation that is made is the guard's only."""

    def _loss_again(self, trial: Any, ignore_keys_for_eval: list[str] | None) -> float | None:
        """Evaluate without firing a trigger."""
        raise NotImplementedError

    def _begin_rescue(self, bundle: Bundle | None, target: Return | None) -> None:
        super()._begin_rescue(bundle, target)
        self._asked_for = False

    def protected(self) -> list[Path]:
        """Checkpoints that must not be deleted: an open guard may lead back to them."""
        guard = self.session.state.guard if self.session is not None else None
        return [self.run_folder / name for name in guard.kept] if guard is not None else []

    def _open_guard(self, entry: Entry, trial: Any, ignore_keys_for_eval: list[str] | None) -> Guard | None:
        """Before an operation: make sure of the state to go back to, and of its loss. None where there is no guard.

        Raises:
            ModelError: if the model is dead already.
        """
        if entry.guard is None:
            return None
        assert self.session is not None
        state = self.session.state
        if self._saved_key != self._key:
            self._save_now(trial)
            if not self.session.saves:
                raise ModelError(
                    f"step {state.step}: the model is dead, so there is no state to go back to, and the guarded "
                    f"{entry.operation.name} is not applied; resume from the last checkpoint."
                )
        self.finish_write()
        if state.evaluated_at != state.step:
            with self._unseen():
                self._loss_again(trial, ignore_keys_for_eval)
        best = self.state.best_model_checkpoint
        return Guard.over(
            entry.guard,
            index=state.position.done,
            operation=entry.operation.name,
            step=state.step,
            before=self._known_loss(),
            checkpoint=self._folder(state.step).name,
            best=Path(best).name if best else None,
        )

    def _known_loss(self) -> float:
        """The loss of this step.

        Raises:
            MorphError: if evaluations tell none.
        """
        assert self.session is not None
        state = self.session.state
        if state.loss is None or state.evaluated_at != state.step:
            key = self._morphing_key()
            raise MorphError(
                f"guard: the evaluation of step {state.step} gives no {key}, by which operations are judged; let the "
                "evaluation data have labels, or leave the guard out."
            )
        return state.loss

    def _morphing_key(self) -> str:
        return str(getattr(getattr(self, "_morphing", None), "loss_key", "eval_loss"))

    @contextmanager
    def _unseen(self) -> Iterator[None]:
        """An evaluation that draws no random number: the run is the same without it."""
        before = RandomState.now(self.args.device)
        try:
            yield
        finally:
            before.restore(self.args.device)

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
        """As inherited; the last step that counts for a guard is evaluated, whatever the interval."""
        session = self.session
        if session is not None:
            self._follow_verdict()  # of an evaluation that a callback has made
            guard = session.state.guard
            stopped = self.control.should_training_stop and not session.stopping
            if guard is not None and (session.wants_verdict or stopped):
                session.last_chance = True
                self._asked_for = not self.control.should_evaluate
                self.control.should_evaluate = True
        super()._maybe_log_save_evaluate(
            tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate=learning_rate
        )

    def _evaluate(
        self, trial: Any, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False
    ) -> dict[str, float]:
        """As inherited; what is evaluated for a guard alone counts for nothing else."""
        session = self.session
        if session is not None and self._returning is not None:  # `eval_on_start`: this is no start
            return {}
        if session is None or not self._asked_for:
            metrics: dict[str, float] = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        else:
            session.listening = False
            try:
                with self._unseen():
                    metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler=True)
            finally:
                session.listening = True
        if session is not None:
            self._follow_verdict()
            if session.last_chance and session.state.guard is not None:
                self._known_loss()  # there is none
            stopped = self.control.should_training_stop and not session.stopping
            if session.state.guard is not None and stopped:  # early stopping, by this evaluation
                self._undo(session.state.guard, session.state.loss)
            session.last_chance = False
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        if self._asked_for:
            self._asked_for = False
            return bool(self.control.should_save)
        return bool(super()._determine_best_metric(metrics, trial))

    def _follow_verdict(self) -> None:
        """Do as the last evaluation says of the guard, if it says anything."""
        assert self.session is not None
        judged, self.session.judged = self.session.judged, None
        if judged is None:
            return
        guard, verdict = judged
        state = self.session.state
        if verdict is Verdict.FAILED:
            self._undo(guard, state.loss)
        facts = {"index": guard.index, "operation": guard.operation, "before": guard.before, "loss": state.loss}
        self._reports.event("guard_closed", state.step, **facts)
        if self.is_world_process_zero():
            losses = f"evaluation loss {guard.before:.4f} before it, {state.loss:.4f} now"
            _log.info("step %d: %s of step %d has worked out: %s", state.step, guard.operation, guard.step, losses)

    def _before(self, guard: Guard) -> Path:
        """The state from before; beside the checkpoint that was resumed, where the run goes on in another folder."""
        here = self.run_folder / guard.checkpoint
        return here if here.is_dir() or self._bundle is None else self._bundle.path.parent / guard.checkpoint

    def _undo(self, guard: Guard, loss: float | None, reason: str = "") -> NoReturn:
        """A guarded operation has not worked out: go back, or end.

        Raises:
            GoingBack, GuardError: one of them.
        """
        assert self.session is not None
        step, schedule = self.session.state.step, self.schedule
        self.finish_write()
        told = f"{schedule.where(guard.index, 'guard')}: {guard.told(step, loss, reason)}"
        folder = self._before(guard)
        facts = {
            "index": guard.index,
            "operation": guard.operation,
            "until": step,
            "before": guard.before,
            "loss": loss,
            "limit": guard.limit,
            "reason": reason,
        }
        if guard.stops:
            self._reports.event("guard_failed", step, **facts)
            self._drop_later(folder, guard.step)
            error = GuardError(
                f"{told}. The run ends, and nothing of this is saved. {folder} holds the state from before: change the "
                "operation or remove it, and go on with --resume_from_checkpoint true."
            )
            self.session.consensus.all_know(error)
            raise error
        if self.is_world_process_zero():
            _log.warning("%s. The run goes back to step %d and on without it.", told, guard.step)

        def mark(state: RunState) -> None:
            state.passed_over(schedule, guard)

        raise GoingBack(Return(folder, "rolled_back", mark, facts, drops=True))
