"""`MorphingTrainer`: the Hugging Face Trainer that runs in segments, and lets the engine work between them.

Private methods of `Trainer` that are overridden in the layers below, and why (tests/test_upstream.py watches their
signatures):

    in `segments`, because batches and models change on the way:
    _init_training_state          where a run stands is counted by samples, from its cursor
    _prepare_for_training         hands the loop the model of the moment, not the first one
    _run_epoch                    an epoch in segments

    in `recovering` and `guarding`, for want of memory:
    _run_epoch                    a step that runs out of it is undone
    _maybe_log_save_evaluate      an emergency checkpoint where it is short

    in `checkpointing`, for saving that is atomic and loading that is strict:
    _load_from_checkpoint, _load_rng_state, _load_optimizer_and_scheduler, _load_best_model, _get_output_dir,
    _save_checkpoint, _push_from_checkpoint, _save
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from filelock import FileLock
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel
from transformers.trainer_utils import TrainOutput, has_length

from morphing_trainer.callback import MorphCallback, SegmentHandler
from morphing_trainer.checkpoint import sweep
from morphing_trainer.config import MorphingConfig
from morphing_trainer.engine import options_of, rebuild_optimizer, states_without_rule
from morphing_trainer.errors import CheckpointError, ConfigError
from morphing_trainer.layers.operating import OperatingTrainer
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.lineage.adapters import bare
from morphing_trainer.planning import play
from morphing_trainer.reporting.display import RunDisplay
from morphing_trainer.reporting.records import Phase
from morphing_trainer.run.applying import MUTABLE, bare_optimizer, enforce
from morphing_trainer.run.beginning import (
    check_arguments,
    check_batch,
    check_devices,
    check_memory,
    check_planned,
    check_schedule,
    check_stages,
    first_settings,
    stages_of,
)
from morphing_trainer.run.bundle import Bundle, load_model
from morphing_trainer.run.course import Course, TrainingStage, with_rate
from morphing_trainer.run.folder import check_start, clear, locked
from morphing_trainer.run.freezing import freeze_by_default
from morphing_trainer.run.reports import RunReports
from morphing_trainer.run.resume import LENGTH, Override, check_model, compare, position_under, replayed, snapshot
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
        super().__init__(model, args, *positional, **options)
        self._stages = tuple(stages)
        check_devices(self)
        check_schedule(self.schedule, args, has_scheduler=self.lr_scheduler is not None)
        self._arguments = snapshot(args)
        # Operations change these arguments while a run goes on; another run begins with them as they were given.
        self._given = {name: getattr(args, name) for name in MUTABLE}
        self._pushes = []
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
            timing=lambda: self.session.stopwatch.profile() if self.session else {},
            memory=self.memory_shown,
        )
        self.display.install(self)
        self.callback_handler = SegmentHandler(self.callback_handler)
        # Ahead of all others, which then see the state as it is after the step.
        self.callback_handler.callbacks.insert(0, self._morphing)
        self._observe(self._morphing)
        self.callback_handler.callbacks += watchers(self)
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
            RunInterrupted: after Ctrl+C or SIGTERM, when the run has been saved; its exit code is the conventional one.
        """
        bundle = self.find_bundle(resume_from_checkpoint)
        session = self._open(bundle, resume_from_checkpoint)
        try:
            with session.stop.listening():
                output = super().train(str(bundle.path) if bundle else None, trial, ignore_keys_for_eval)
            event = "interrupted" if session.stopping else "end"
            self._reports.event(event, session.state.step, loss=session.state.loss, spec=session.state.spec.to_dict())
        except BaseException as error:
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
        spec = ModelSpec.of(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))
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
        check_stages(self.schedule, course)
        return course

    def _resumed_state(self, bundle: Bundle) -> tuple[RunState, list[Override]]:
        """The state that a checkpoint holds, under this run's arguments and schedule, and what those change."""
        fresh = self._fresh_state()
        afresh = self.args.ignore_optimizer
        overrides = compare(bundle, self._arguments, self.schedule, self.course, new_optimizer=afresh)
        state = RunState.from_dict(bundle.state, self.course.cursor(len(bundle.state["stages"]) - 1))
        check_model(bundle, fresh, state)
        if self.args.reset_history:
            state.totals = {}
            overrides.append(Override("reset_history", False, True))
        self._saved_rate = state.settings.learning_rate
        state.initial = fresh.settings
        changed = {override.name for override in overrides}
        if "per_device_train_batch_size" in changed and "world_size" not in changed:
            state.halvings = []  # who gives another batch knows what fits
        state.settings = replayed(state, fresh.settings, self.schedule, self.course)
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
        return state, overrides

    def _planned(self, state: RunState) -> list[Phase]:
        evaluates = str(getattr(self.args.eval_strategy, "value", self.args.eval_strategy)) != "no"
        kind, options = self._optimizer_class()
        unruled = states_without_rule(kind, options, self.args.device) if len(self.schedule) else []

        def check(phase: Phase) -> None:
            check_batch(self.schedule, phase, self.course)
            check_memory(self.schedule, phase, kind.__name__, unruled)

        return play(
            self.schedule,
            state.spec,
            state.settings,
            seed=self.args.seed,
            position=state.position,
            steps=state.end,
            evaluates=evaluates and self.eval_dataset is not None,
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
            self._unlock()
            raise

    def _set_up(self, bundle: Bundle | None) -> Session:
        state, overrides = (self._fresh_state(), []) if bundle is None else self._resumed_state(bundle)
        self.plan = self._planned(state)
        self._bundle = bundle
        if bundle is not None:
            self.model = self.model_wrapped = load_model(bundle.path, state.spec, self.model, self.args.device)
            old = bare_optimizer(self) if self._custom_optimizer else None
            self.optimizer = None if old is None else rebuild_optimizer(old, self.model, state.groups)
            if self._custom_scheduler:
                self.lr_scheduler.optimizer = self.optimizer
        enforce(state.settings, self.args)
        self._train_batch_size = self.args.train_batch_size
        self._use_data(state)
        averages = bool(self.args.average_tokens_across_devices)
        session = Session(self.schedule, state, self.course, averages_tokens=averages)
        self.session = self._morphing.session = self.callback_handler.session = session
        self._take_lock()
        if self.is_world_process_zero():
            if bundle is None:
                clear(self.run_folder)
                self._reports.records.clear()
            sweep(self.run_folder)
        self.session.consensus.barrier()
        self._reports.open()
        if bundle is None:
            self._reports.started(state, self.schedule, self.args.seed)
        else:
            self._reports.resumed(state, bundle, overrides)
        self._begin_analysis(bundle)
        self._watch_memory()
        self.callback_handler.announce("on_plan", self.args, self.state, self.control, phases=self.plan)
        return self.session

    def _take_lock(self) -> None:
        """Keep other processes out of the run's folder; if one is in it, all ranks raise."""
        assert self.session is not None
        failure = None
        try:
            if self.is_world_process_zero():
                self._lock = locked(self.run_folder)
        except ConfigError as error:
            failure = error
        self.session.consensus.settle(failure)

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _close(self) -> None:
        self._morphing.session = self.callback_handler.session = None
        self.display.close()
        self._reports.close(self.state.log_history)
        self._unlock()
