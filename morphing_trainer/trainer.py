"""`MorphingTrainer`: the Hugging Face Trainer that runs in segments, and lets the engine work between them.

Private methods of `Trainer` that are overridden in the layers below, and why (tests/test_upstream.py watches their
signatures):

    in `segments`, because batches and models change on the way:
    _init_training_state          where a run stands is counted by samples, from its cursor
    _prepare_for_training         hands the loop the model of the moment, not the first one
    _run_epoch                    an epoch in segments

    in `finite` and `rescuing`, for operations that do not work out and steps that are NaN:
    _get_grad_norm                the norm of every step is looked at
    _maybe_log_save_evaluate      a guard's last evaluation is asked for; a bad step ends the run, or it goes back
    _evaluate, _determine_best_metric
                                  what is evaluated for a guard alone counts for nothing else

    in `lines`, for log lines and a result that are those of the whole run:
    _save_checkpoint, _maybe_log_save_evaluate, _finalize_training

    in `recovering` and `pressure`, for want of memory:
    _run_epoch                    a step that runs out of it is undone
    _maybe_log_save_evaluate      an emergency checkpoint where it is short

    in `checkpointing`, for loading that is strict:
    _load_from_checkpoint, _load_rng_state, _load_optimizer_and_scheduler, _load_scaler, _load_callback_state,
    _load_best_model

    in `publishing`, for pushes that are whole, and disturb nothing:
    _push_from_checkpoint, _finish_current_push

    in `saving`, for checkpoints that are whole or not there, and may be written beside the training:
    _save_checkpoint, _save, _maybe_log_save_evaluate, _finalize_training
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel
from transformers.trainer_utils import TrainOutput, has_length

from morphing_trainer.callback import MorphCallback, SegmentHandler
from morphing_trainer.checkpoint import sweep
from morphing_trainer.checkpoint.storage import refusal, storage_told
from morphing_trainer.config import MorphingConfig
from morphing_trainer.engine import begins_with_state, options_of, rebuild_optimizer, states_without_rule
from morphing_trainer.errors import CheckpointError, ConfigError, GuardError, MorphError, ScheduleError, StorageError
from morphing_trainer.layers.finite import LastWord
from morphing_trainer.layers.operating import OperatingTrainer
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.lineage.adapters import bare
from morphing_trainer.planning import Played, played
from morphing_trainer.plans.plan import check_stages
from morphing_trainer.reporting.display import RunDisplay
from morphing_trainer.reporting.records import Phase
from morphing_trainer.run.alternatives import check_alternatives
from morphing_trainer.run.applying import MUTABLE, bare_optimizer, enforce
from morphing_trainer.run.back import GoingBack, Return
from morphing_trainer.run.background import Background
from morphing_trainer.run.before import bring, check_guard
from morphing_trainer.run.beginning import (
    check_arguments,
    check_batch,
    check_devices,
    check_guards,
    check_memory,
    check_planned,
    check_schedule,
    first_settings,
    stages_of,
)
from morphing_trainer.run.bundle import Bundle, load_model, read_bundle
from morphing_trainer.run.chunked_loss import check_chunks
from morphing_trainer.run.consensus import Consensus
from morphing_trainer.run.course import Course, TrainingStage, with_rate
from morphing_trainer.run.digest import agree, agree_on
from morphing_trainer.run.farewell import together
from morphing_trainer.run.folder import check_start, clear, locked
from morphing_trainer.run.freezing import freeze_by_default
from morphing_trainer.run.lateness import not_applied, too_late
from morphing_trainer.run.replacing import replaced
from morphing_trainer.run.reports import RunReports
from morphing_trainer.run.resume import (
    LENGTH,
    Override,
    alike,
    batch_given,
    check_model,
    compare,
    divided_anew,
    position_under,
    replayed,
    snapshot,
)
from morphing_trainer.run.session import Session
from morphing_trainer.run.signals import RunInterrupted
from morphing_trainer.run.state import RunState
from morphing_trainer.run.watching import watchers
from morphing_trainer.schedule import Position, Schedule

_log = logging.getLogger("morphing_trainer")


class MorphingTrainer(OperatingTrainer):
    """A `transformers.Trainer` whose model and hyper-parameters change while it trains, driven by a schedule.

    Takes what `Trainer` takes, with a `MorphingConfig` for `args`, and `schedule`. With an empty schedule it trains
    exactly as `Trainer` does, but that embeddings do not decay and weight decay has the optimizer's own default.

    Args:
        schedule: path of a YAML or JSON file, a list of entries, or a `Schedule`. Default: the file that
            `args.scaling_schedule_file` names, or none.
        stages: of a training plan, each with its own data and length, in place of `train_dataset`, `eval_dataset` and
            the lengths in `args`.

    Raises:
        ScheduleError: with every problem of the schedule, judged against this model, before anything is trained.
        ModelError: if the model's family is not supported.
        ConfigError: for arguments that cannot be combined with morphing.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: MorphingConfig | None = None,
        *positional: Any,
        schedule: Any = None,
        stages: Sequence[TrainingStage] = (),
        **options: Any,
    ) -> None:
        args = check_arguments(model, args)
        assert model is not None
        model = bare(model)  # PEFT's wrapper would be lost at the first operation; its adapters are in the model
        assert isinstance(model, PreTrainedModel), "check_arguments has seen to that"
        freeze_by_default(model, args)
        self.schedule = Schedule.of(args.scaling_schedule_file if schedule is None else schedule)
        if stages:
            check_planned(args, stages, positional, options)
            options |= {"train_dataset": stages[0].train_dataset, "eval_dataset": stages[0].eval_dataset}
        with storage_told(Path(str(args.output_dir))):
            super().__init__(model, args, *positional, **options)
        self._stages = tuple(stages)
        check_devices(self)
        check_chunks(self, model)
        check_schedule(self.schedule, args, self.lr_scheduler is not None, self.is_fsdp_enabled)
        check_guards(self.schedule, self._stages or [self.eval_dataset])
        self._arguments = snapshot(args)
        # Operations change these arguments while a run goes on; another run begins with them as they were given.
        self._given = {name: getattr(args, name) for name in MUTABLE}
        self._background = Background()
        self._scheduler_state: Mapping[str, Any] = {}
        self._custom_optimizer = self.optimizer is not None
        self._lock: FileLock | None = None
        self._given_rates = [group["lr"] for group in self.optimizer.param_groups] if self._custom_optimizer else None
        self._reports = RunReports(self.run_folder, self.is_world_process_zero())
        self._morphing = MorphCallback(self._reports.evaluated)
        self._morphing.end_moved = self._end_moved
        if isinstance(self.eval_dataset, dict):
            self._morphing.loss_key = f"eval_{next(iter(self.eval_dataset))}_loss"
        self.display = RunDisplay(
            upcoming=lambda: self.session.upcoming() if self.session else None,
            tokens=lambda: self.session.state.tokens if self.session else 0,
            seconds=lambda: self.session.seconds() if self.session else 0.0,
            facts=lambda: self.session.state.spec.facts() if self.session else {},
            records=lambda: self._reports.records,
            later=lambda: self._reports.later,
            undone=lambda: self._reports.undone,
            left=lambda: not_applied(self.session),
            timing=lambda: self.session.stopwatch.profile() if self.session else {},
            memory=self.memory_shown,
        )
        self.display.install(self)
        self.callback_handler = SegmentHandler(self.callback_handler)
        # Ahead of all others, which then see the state as it is after the step.
        self.callback_handler.callbacks.insert(0, self._morphing)
        self._observe(self._morphing)
        self.callback_handler.callbacks += [*watchers(self), LastWord(self)]
        self.plan: list[Phase] = []
        if self.train_dataset is not None and has_length(self.train_dataset):
            self.plan = self._planned(self._fresh_state())

    # ---- Beginning and end -----------------------------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, or go on with a run.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True for the latest valid one in `args.output_dir`;
                "auto" for that if there is one, and a fresh start if there is none.

        Raises:
            CheckpointError: if there is nothing to resume, or the checkpoint does not fit this run.
            ConfigError: if `args.output_dir` holds another run and is neither resumed nor overwritten.
            StorageError: if the disk does not take a checkpoint or the journal.
            RankError: if another process failed, or was killed; with what it said.
            GuardError: if a guarded operation has not worked out, and its guard says stop.
            NotFiniteError: if a loss or gradient is NaN or infinite, and `on_nan` knows no other way.
            RunInterrupted: after Ctrl+C or SIGTERM, when the run has been saved; its exit code is the conventional one.
        """
        self._consensus = Consensus()
        with self._as_one(), storage_told(self.run_folder):
            bundle = self.find_bundle(resume_from_checkpoint, self._consensus)
            session = self._open(bundle, resume_from_checkpoint)
        try:
            with session.stop.listening(), self._as_one(), storage_told(self.run_folder):
                output = self._rounds(bundle, trial, ignore_keys_for_eval)
            session = self._current()
            event = "interrupted" if session.stopping else "end"
            self._reports.event(event, session.state.step, loss=session.state.loss, spec=session.state.spec.to_dict())
        except BaseException as error:
            session = self._current()
            with suppress(OSError):  # a full disk must not hide what happened
                self._reports.event("failed", session.state.step, error=f"{type(error).__name__}: {error}")
            raise
        finally:
            self._close()
        # Also a signal that came after the last step: it must not be lost.
        if session.stopping or session.stop.signum is not None:
            saved = self.run_folder / f"checkpoint-{session.state.step}"
            # A rank that was only told to stop by another one leaves as if by SIGTERM.
            raise RunInterrupted(session.stop.signum or signal.SIGTERM, str(saved) if saved.is_dir() else None)
        return output

    def _rounds(self, bundle: Bundle | None, trial: Any, ignore_keys_for_eval: list[str] | None) -> TrainOutput:
        """Train, and go back to a checkpoint of this run as often as there is reason to."""
        while True:
            try:
                return super().train(str(bundle.path) if bundle else None, trial, ignore_keys_for_eval)
            except GoingBack as going:
                target = going.target
            # Out here the frames are gone that held the model and the optimizer.
            bundle = self._begin_again(target)

    def _begin_again(self, target: Return) -> Bundle:
        """Set everything up as one of the run's own checkpoints has it."""
        try:
            bundle = read_bundle(target.folder)
        except CheckpointError as error:
            raise GuardError(f"the run was to go back to {target.folder}, which is gone or damaged: {error}") from error
        # What was still to be done after the step that is undone: a resumed run begins without it.
        for name in ("should_log", "should_evaluate", "should_save", "should_epoch_stop", "should_training_stop"):
            setattr(self.control, name, False)
        try:
            self._set_up(bundle, target)
        except ScheduleError as error:
            told = GuardError(
                f"the run has gone back to {target.folder}, but without the operation that was undone the rest of the "
                f"schedule does not fit: {error}. Change it, and go on with --resume_from_checkpoint {target.folder}."
            )
            self._consensus.all_know(told)
            raise told from error
        return bundle

    def _current(self) -> Session:
        """The session of the run in progress; another one after it has gone back."""
        assert self.session is not None
        return self.session

    def _as_one(self) -> AbstractContextManager[None]:
        """A block that all ranks come to the end of, or none."""
        return together(self._consensus, self._let_go)

    def _fresh_state(self) -> RunState:
        """The state of a run that begins now, with the arguments as they were given."""
        for name, value in self._given.items():
            setattr(self.args, name, value)
        if self.optimizer is not None:  # of the user, or of a run before
            groups = self.optimizer.param_groups
            for group, rate in zip(groups, self._given_rates or [self.args.learning_rate] * len(groups), strict=True):
                group |= {key: rate for key in ("lr", "initial_lr") if key in group}
        course = self.course = self._course()
        rate = self._given_rates[0] if self._given_rates else self.args.learning_rate
        settings = with_rate(first_settings(self.args, course, rate), course.stages[0])
        spec = ModelSpec.of(self.bare_model)
        position = Position().settle(self.schedule)
        names = {course.names[0]: 0}
        state = RunState(spec, {}, settings, settings, spec, course.cursor(0), position, stages=names)
        course.measure(state)
        state.planned = state.end
        state.ramp = (0, self.args.warmup_after_load(state.end))
        return state

    def _course(self) -> Course:
        """The stages of this run, and their data in its place."""
        stages = self._stages or stages_of(self.args, self.train_dataset, self.eval_dataset)
        course = Course(stages, self.args)
        check_stages(self.schedule, course.names)
        return course

    def _resumed_state(self, bundle: Bundle, target: Return | None = None) -> tuple[RunState, list[Override]]:
        """The state that a checkpoint holds, under this run's arguments and schedule, and what those change.

        Args:
            target: the run goes back to the checkpoint, by itself.
        """
        fresh = self._fresh_state()
        afresh = self.args.ignore_optimizer and target is None
        overrides = compare(bundle, self._arguments, self.schedule, self.course, new_optimizer=afresh)
        state = RunState.from_dict(bundle.state, self.course.cursor(len(bundle.state["stages"]) - 1))
        if self.session is not None:  # the model has grown in a run of this very trainer
            fresh.began = self.session.state.began
        if target is None:
            check_model(bundle, fresh, state)
            check_guard(bundle, state, self.run_folder, afresh=afresh)
        if self.args.reset_history and target is None:
            state.totals, state.logged = {}, None
            overrides.append(Override("reset_history", False, True))
        saved = state.settings
        self._saved_rate = saved.learning_rate
        state.initial = fresh.settings
        changed = {override.name for override in overrides}
        if "per_device_train_batch_size" in changed and "world_size" not in changed:
            state.halvings = []  # who gives another batch knows what fits
        state.settings = replayed(state, fresh.settings, self.schedule, self.course)
        if not batch_given(changed, bundle.arguments, self._arguments):
            state.settings = divided_anew(state.settings, saved, bundle.processes, self.args.world_size)
        if "schedule" in changed:
            state.position = position_under(self.schedule, state.position, bundle.schedule)
        if changed & LENGTH:
            begun, now = bundle.stages[state.stage_index], self.course.stages[state.stage_index].facts()
            others = changed & LENGTH - {"stages"}
            self.course.measure(state, current=bool(others) or begun["length"] != now["length"])
            state.planned = state.end
        if state.end < state.step:
            raise CheckpointError(
                f"resume from {bundle.path}: stands at step {state.step}, but this run would end at step {state.end}; "
                "raise max_steps or num_train_epochs, or resume from an earlier checkpoint."
            )
        if afresh:
            state.ramp = (state.step, self.args.warmup_after_load(state.end))
            overrides.append(Override("ignore_optimizer", False, True))
        if target is not None:
            target.mark(state)
        return state, overrides

    def _planned(self, state: RunState) -> list[Phase]:
        """The schedule played through; also as it is if what is guarded is rolled back."""
        found = self._played(state, self.schedule)
        check_alternatives(self.schedule, lambda schedule: self._played(state, schedule))
        self._too_late = too_late(found, state, self.course, evaluates=self._evaluates)
        return [each.phase for each in found]

    @property
    def _evaluates(self) -> bool:
        """Whether the run evaluates by itself."""
        strategy = str(getattr(self.args.eval_strategy, "value", self.args.eval_strategy))
        return strategy != "no" and self.eval_dataset is not None

    def _played(self, state: RunState, schedule: Schedule) -> list[Played]:
        kind, options = self._optimizer_class()
        unruled = states_without_rule(kind, options, self.args.device) if len(schedule) else []
        if self.is_fsdp_enabled and begins_with_state(kind, options):
            raise ConfigError(
                f"optimizer: {kind.__name__} remembers something of the parameters before its first step, and FSDP2 "
                "divides them after it is made; use an optimizer such as AdamW, SGD or RMSprop."
            )

        def check(phase: Phase) -> None:
            check_batch(schedule, phase, self.course)
            check_memory(schedule, phase, kind.__name__, unruled)

        return played(
            schedule,
            state.spec,
            state.settings,
            seed=self.args.seed,
            position=state.position,
            steps=state.end,
            evaluates=self._evaluates,
            can_evaluate=self.eval_dataset is not None,
            analyses=self.args.analysis_evals is not None,
            check=check,
            settle=self.course.settled,
        )

    def _optimizer_class(self) -> tuple[type[Optimizer], dict[str, Any]]:
        """The optimizer of this run, made or to be made, and its options."""
        if self.optimizer is not None:
            optimizer = bare_optimizer(self)
            return type(optimizer), options_of(optimizer)
        made: tuple[type[Optimizer], dict[str, Any]] = (
            self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, self.model)
        )
        return made

    def _open(self, bundle: Bundle | None, resume: str | bool | None) -> Session:
        """Set everything up for a run, fresh or resumed. Nothing is deleted before all of it has been checked."""
        check_start(self.run_folder, resume if bundle is None else True, overwrite=self.args.overwrite_output_dir)
        try:
            return self._set_up(bundle)
        except BaseException:
            self._morphing.session = self.callback_handler.session = None
            self._reports.let_go()
            self._unlock()
            raise

    def _set_up(self, bundle: Bundle | None, target: Return | None = None) -> Session:
        before = self.session
        state, overrides = (self._fresh_state(), []) if bundle is None else self._resumed_state(bundle, target)
        self.plan = self._planned(state)
        self._bundle = bundle
        same = partial(alike, self._arguments, self.schedule, self.course, state)
        agree_on(self._consensus, same, "where the run begins" if bundle is None else f"resume from {bundle.path}")
        if bundle is not None:
            # FSDP2 takes the rows that each device keeps from a model in host memory; whole, it may not fit into one.
            place = torch.device("cpu") if self.is_fsdp_enabled else self.args.device
            model = load_model(bundle.path, state.spec, self.model, place, self._weights_of(bundle.path))
            agree(self._consensus, model.named_parameters(), {}, f"the model of {bundle.path}")
            self.model = self.model_wrapped = model
            old = bare_optimizer(self) if self._custom_optimizer else None
            self.optimizer = None if old is None else rebuild_optimizer(old, self.model, state.groups)
            if self._custom_scheduler:
                self.lr_scheduler.optimizer = self.optimizer
        enforce(state.settings, self.args)
        self._train_batch_size = self.args.train_batch_size
        self._use_data(state)
        averages = bool(self.args.average_tokens_across_devices)
        session = Session(self.schedule, state, self.course, averages_tokens=averages, consensus=self._consensus)
        session.is_written = self._part_is_done
        self.session = self._morphing.session = self.callback_handler.session = session
        if target is None or bundle is None:
            self._take_folder(bundle, state, overrides)
        else:
            assert before is not None
            session.stop = before.stop  # what it has heard, and will hear
            self._reports.went_back(state, bundle, target)
        self._begin_analysis(bundle)
        self._watch_memory()
        self._begin_rescue(bundle, target)
        self.callback_handler.announce("on_plan", self.args, self.state, self.control, phases=self.plan)
        if target is None and self.is_world_process_zero():
            for line in self._too_late:
                _log.warning("%s", line)
        return self.session

    def _take_folder(self, bundle: Bundle | None, state: RunState, overrides: list[Override]) -> None:
        """Keep other processes out of the run's folder, and begin in it or go on; if that fails, all ranks raise."""
        assert self.session is not None
        failure: Exception | None = None
        before = None
        try:
            if self.is_world_process_zero():
                self._lock = locked(self.run_folder)
                if bundle is None:
                    before = replaced(self.run_folder, overwrite=self.args.overwrite_output_dir)
                    clear(self.run_folder)
                    self._reports.records.clear()
                sweep(self.run_folder)
                if bundle is not None and state.guard is not None:
                    bring(state.guard, bundle.path.parent, self.run_folder)
            if bundle is None:
                self._reports.started(state, self.schedule, self.args.seed)
                if before is not None:
                    _log.log(*before)
            else:
                self._reports.resumed(state, bundle, overrides)
        except MorphError as error:
            failure = error
        except OSError as error:
            failure = StorageError(
                f"output_dir: {self.run_folder} cannot be used ({refusal(error)}); make room or make it writable, or "
                "choose another folder."
            )
            failure.__cause__ = error
        self.session.consensus.settle(failure)

    def _unlock(self) -> None:
        if self._lock is not None:
            self._background.afterwards(self._lock.release)
            self._lock = None

    def _close(self) -> None:
        self._morphing.session = self.callback_handler.session = None
        try:
            self._drop_write()
            self.display.close()
            self._reports.close(self.state.log_history)
        finally:
            self._unlock()
