"""A Trainer that applies operations and enters stages between the segments of its loop."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from functools import partial
from typing import Any

from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from morphing_trainer.layers.guarding import GuardedTrainer
from morphing_trainer.lineage import Census
from morphing_trainer.operations import ArchitectureOperation, HyperparameterOperation, MeasuredOperation
from morphing_trainer.operations.stages import AdvanceStage
from morphing_trainer.reporting.console import operation_text
from morphing_trainer.reporting.records import Record
from morphing_trainer.run.applying import enforce, transplant
from morphing_trainer.run.digest import agree_on, facts
from morphing_trainer.run.learning_rate import scale_peaks
from morphing_trainer.run.patience import Patience
from morphing_trainer.run.state import RunState
from morphing_trainer.run.undoing import undone_on_failure
from morphing_trainer.settings import Settings

_log = logging.getLogger("morphing_trainer")


class OperatingTrainer(GuardedTrainer):
    """Operations and stages of `MorphingTrainer`."""

    # ---- Operations ------------------------------------------------------------------------------------------------

    def _apply_due(self, trial: Any, ignore_keys_for_eval: list[str] | None) -> None:
        """Apply the operation that is due, tell everybody, and evaluate again if it asks for that."""
        assert self.session is not None
        session, state = self.session, self.session.state
        entry, index = state.position.upcoming(self.schedule), state.position.done
        assert entry is not None
        assert state.position.pending is not None
        guard = self._open_guard(entry, trial, ignore_keys_for_eval)
        with undone_on_failure(self):
            if entry.reevaluate and state.evaluated_at != state.step:
                self._loss_again(trial, ignore_keys_for_eval)  # an older loss would tell of the steps since, too
            start, before, trigger = time.perf_counter(), state.facts(), state.position.pending
            morph, census, note, warning = None, Census(), "", ""
            measured: dict[str, float] | None = None
            if isinstance(entry.operation, HyperparameterOperation):
                if isinstance(entry.operation, MeasuredOperation):
                    measured = entry.operation.measure(self._probe())
                    note = entry.operation.note(measured)
                    self._adopt(entry.operation.updated(state.settings, measured, self.args.world_size))
                else:
                    self._adopt(entry.operation.update(state.settings, state.step))
                if isinstance(entry.operation, AdvanceStage):
                    warning = self._advance(entry.operation.value)
            else:
                assert isinstance(entry.operation, ArchitectureOperation)
                morph, census = transplant(self, state, entry.operation, index)
            session.applied(measured, guard)
        self._operated(morph.lineage if morph else None)
        seconds = time.perf_counter() - start
        record = Record(
            index=index,
            operation=entry.operation.name,
            value=entry.operation.value,
            desc=entry.desc,
            trigger=trigger,
            step=state.step,
            tokens=state.tokens,
            before=before,
            after={
                **state.facts(),
                "loss": self._loss_again(trial, ignore_keys_for_eval) if entry.reevaluate else None,
            },
            moments=asdict(census),
            seconds=seconds,
            preserving=morph.preserving if morph else None,
            multipliers=state.multipliers,
            note=morph.note if morph else note,
            warning=morph.warning if morph else warning,
        )
        self._reports.operation(record, entry, state.spec)
        self.callback_handler.announce("on_operation", self.args, self.state, self.control, record=record)
        self._log_size(operation_text(entry.operation.name, entry.operation.value))

    def _loss_again(self, trial: Any, ignore_keys_for_eval: list[str] | None) -> float | None:
        """Evaluate to show what an operation did. That is no progress, so it fires no trigger."""
        assert self.session is not None
        self.session.listening = False
        try:
            self._evaluate(trial, ignore_keys_for_eval, skip_scheduler=True)
        finally:
            self.session.listening = True
        return self.session.state.loss

    def _adopt(self, new: Settings) -> None:
        """Put other settings into force, and everything that follows from them."""
        assert self.session is not None
        state, old = self.session.state, self.session.state.settings
        new = self.course.settled(new)
        agree_on(self.session.consensus, partial(facts, "setting", new.to_dict()), f"step {state.step}: new settings")
        state.settings = new
        enforce(new, self.args)
        if self.course.batch(new) != self.course.batch(old):
            self._train_batch_size = self.args.train_batch_size
            self.course.measure(state)
        self._show_settings()
        scale_peaks(self.optimizer, old.learning_rate, new.learning_rate)
        self._lay_rate(restarted=new.lr_anchor != old.lr_anchor)

    def _lay_rate(self, *, restarted: bool = False) -> None:
        """Lay the learning-rate schedule over the run as it is now known."""
        if restarted or not self._is_stateful:
            self.lr_scheduler = self._scheduler_at(0 if restarted else self.lr_scheduler.last_epoch)
            self.callback_handler.lr_scheduler = self.lr_scheduler

    def _end_moved(self) -> None:
        """The run turns out to end at another step, because samples differ in length."""
        self._show_settings()
        if not self._custom_scheduler:
            self._lay_rate()

    # ---- Stages ----------------------------------------------------------------------------------------------------

    def _advance(self, name: str | None) -> str:
        """End the current stage, to go on with the next one or with stage `name`; why not, if that is behind."""
        assert self.session is not None
        state = self.session.state
        to = state.stage_index + 1 if name is None else self.course.find(name)
        if to <= state.stage_index:
            return f"stage {name!r} began at step {state.stages[str(name)]} already"
        state.stage_end = state.step
        state.next_stage = to
        state.end = state.step + self.course.steps_from(to, state.settings)
        self._show_settings()
        if state.end == state.step:  # what the inherited flow does at the last step has passed
            self.control.should_training_stop = True
            self.control.should_save |= self.args.save_strategy != SaveStrategy.NO
            self.control.should_evaluate |= self.args.eval_strategy != IntervalStrategy.NO
        return ""

    def _enter_stage(self) -> None:
        """Begin the next stage: its data, its rate, its length, and its operations that are due at once."""
        assert self.session is not None
        state = self.session.state
        index = state.next_stage or state.stage_index + 1
        before, state.next_stage = state.stage_name, None
        settings = self.session.enter(index)
        self.course.measure(state)
        self._adopt(settings)  # after it is known where the run ends, over which the learning rate is laid
        state.patience = Patience()  # losses of two stages cannot be compared
        self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None
        self._use_data(state)
        self._reports.stage(state, before)
        self.callback_handler.announce("on_stage", self.args, self.state, self.control, stage=state.stage_name)
        self.session.begin()

    def _use_data(self, state: RunState) -> None:
        """Put the data of the current stage in their place, and point out if most of them will be left out."""
        stage = self.course.stages[state.stage_index]
        self.train_dataset, self.eval_dataset = stage.train_dataset, stage.eval_dataset
        share = self.course.dropped_share(state)
        if share > 0.5 and self.is_world_process_zero():
            _log.warning(
                "step %d: texts are long for the batch: %.0f %% of the samples are left out, because no text goes on "
                "across an optimizer step. A larger batch, shorter texts or sample_mode packing read more of them.",
                state.step,
                100 * share,
            )
