"""What is checked and worked out before a run begins."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from morphing_trainer.config import MorphingConfig
from morphing_trainer.errors import ConfigError, DataError, Problem, ScheduleError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.operations import MeasuredOperation
from morphing_trainer.reporting.records import Phase
from morphing_trainer.run.course import Course, TrainingStage
from morphing_trainer.run.learning_rate import STATEFUL
from morphing_trainer.run.length import Length
from morphing_trainer.run.state import SINGLE
from morphing_trainer.schedule import Schedule
from morphing_trainer.settings import Settings


def check_arguments(model: nn.Module | None, args: TrainingArguments | None) -> MorphingConfig:
    """The arguments of a trainer, if it can morph with them.

    Raises:
        ConfigError, ModelError: if it cannot, before anything is set up.
    """
    if not isinstance(args, MorphingConfig):
        raise ConfigError(
            f"args: must be a MorphingConfig, is {type(args).__name__}. It takes what TrainingArguments takes: "
            "change the name."
        )
    if model is None:
        raise ConfigError(
            "model: is missing. Pass the model itself; model_init is not supported, because a resumed "
            "run rebuilds the model from its checkpoint."
        )
    if ModelSpec.of(model).trainable == 0:
        raise ConfigError(
            "model: nothing of it is trained, all its parameters are frozen. PeftModel.from_pretrained wants "
            "is_trainable=True for adapters that are to be trained; elsewhere unfreeze some."
        )
    if args.train_sampling_strategy not in ("random", "sequential"):
        raise ConfigError(
            f"train_sampling_strategy: {args.train_sampling_strategy!r} is not supported, because the order of the "
            "samples must not depend on the batch size; use 'random' or 'sequential'."
        )
    if args.save_only_model and args.load_best_model_at_end:
        raise ConfigError(
            "save_only_model: does not go with load_best_model_at_end (or early_stopping_patience, which sets it): the "
            "best model is rebuilt from a whole checkpoint; leave one of them out."
        )
    for name in ("neftune_noise_alpha", "use_liger_kernel"):
        if getattr(args, name):
            raise ConfigError(
                f"{name}: not supported. It patches the model's modules, and a morph replaces them; leave it out."
            )
    return args


def check_devices(trainer: Trainer) -> None:
    """Refuse ways of distributing a model that cannot be morphed yet.

    Raises:
        ConfigError: naming one that can.
    """
    if trainer.is_deepspeed_enabled:
        raise ConfigError(
            "DeepSpeed: not supported. To divide model and optimizer among devices use FSDP2: accelerate launch "
            "--config_file accelerate_configs/fsdp2.yaml train.py ..."
        )
    if trainer.is_fsdp_enabled:
        _check_fsdp(trainer)
    elif trainer.args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise ConfigError(
            "FSDP: was asked for, but Accelerate has not turned it on: it needs accelerators. On a CPU use accelerate "
            "launch --config_file accelerate_configs/ddp_cpu.yaml train.py ... --use_cpu"
        )
    if trainer.args.n_gpu > 1:
        raise ConfigError(
            "this process sees several GPUs, which would be used through DataParallel; launch one process per GPU: "
            "accelerate launch --multi_gpu train.py ..., or choose one by CUDA_VISIBLE_DEVICES."
        )
    args = trainer.args
    if args.world_size > 1 and not (args.average_tokens_across_devices or args.dataloader_drop_last):
        # The last micro-batch of an epoch may leave a process without a sample, and its own average would be NaN.
        raise ConfigError(
            "average_tokens_across_devices: must stay true with several processes, so that the last, smaller batch of "
            "an epoch counts by its tokens; remove the setting, or set dataloader_drop_last."
        )


def _check_fsdp(trainer: Trainer) -> None:
    """Refuse what of FSDP cannot be morphed, and set what must be so."""
    plugin = trainer.accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ConfigError(
            f"FSDP: version {plugin.fsdp_version} is not supported, because it flattens parameters; set fsdp_version: "
            "2, as accelerate_configs/fsdp2.yaml does."
        )
    if plugin.activation_checkpointing:
        raise ConfigError(
            "FSDP: its own activation checkpointing renames parameters; leave fsdp_activation_checkpointing out and "
            "give --activation_checkpointing instead."
        )
    # Compiled as a whole, a model would go past the hooks by which FSDP2 gathers the parameters of its blocks.
    trainer.accelerator.state.dynamo_plugin.use_regional_compilation = True


def check_schedule(schedule: Schedule, args: MorphingConfig, has_scheduler: bool, sharded: bool) -> None:
    """Refuse operations that this run's learning-rate schedule, or a model that FSDP2 divides, cannot carry out.

    Raises:
        ScheduleError: naming each.
    """
    if has_scheduler and args.warmup_after_load(1):
        raise ConfigError(
            "optimizers: a learning-rate scheduler of one's own cannot be joined with optimizer_warmup_steps; pass "
            "(optimizer, None) and choose the scheduler by lr_scheduler_type."
        )
    if len(schedule) and has_scheduler:
        raise ConfigError(
            "optimizers: a learning-rate scheduler is bound to its optimizer and cannot follow a schedule; pass "
            "(optimizer, None) and choose the scheduler by lr_scheduler_type."
        )
    if sharded:
        problems = [
            Problem(
                schedule.where(index),
                f"{entry.operation.name} tries batches out on one process at a time, and FSDP2 needs all of them for "
                "every step; measure under DDP, and use set_batch_size here",
            )
            for index, entry in schedule.written()
            if isinstance(entry.operation, MeasuredOperation)
        ]
        if problems:
            raise ScheduleError(problems)
    kind = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    if kind not in (*STATEFUL, "constant"):
        return
    problems = [
        Problem(
            schedule.where(index),
            f"lr_scheduler_type {kind!r} has no warm-up; use one that has, such as constant_with_warmup",
        )
        for index, entry in schedule.written()
        if entry.operation.name in ("change_warmup_iters", "set_warmup_iters")
    ]
    if problems:
        raise ScheduleError(problems)


def check_guards(schedule: Schedule, evaluated: Sequence[Any]) -> None:
    """Refuse guards where nothing tells the loss.

    Args:
        evaluated: the stages of a plan, or the evaluation data of a run without one.

    Raises:
        ScheduleError: naming each.
    """
    without = [e for e in evaluated if (e.eval_dataset if isinstance(e, TrainingStage) else e) is None]
    if not without:
        return
    of = f" of stage {without[0].name!r}" if isinstance(without[0], TrainingStage) else ""
    what = f"there is no evaluation data{of} to judge the operation by; give eval_dataset, or leave the guard out"
    problems = [Problem(schedule.where(index, "guard"), what) for index, entry in schedule.written() if entry.guard]
    if problems:
        raise ScheduleError(problems)


def check_batch(schedule: Schedule, phase: Phase, course: Course) -> None:
    """Refuse a batch so large that an epoch has none: the run would end there without a word.

    Raises:
        ScheduleError: naming the operation that makes it so.
    """
    batch = course.batch(phase.settings)
    samples = course.fewest_samples()
    if batch.drop_last and samples < batch.global_size:
        what = (
            f"{samples} samples make no complete batch of {phase.settings.batch_size} per device; use a smaller one, "
            "or leave out dataloader_drop_last"
        )
        raise ScheduleError([Problem(schedule.where(phase.index - 1, "value"), what)])


def check_memory(schedule: Schedule, phase: Phase, optimizer: str, unruled: Sequence[str]) -> None:
    """Refuse an operation that the optimizer's memory could not follow.

    Args:
        optimizer: name of its class.
        unruled: what it remembers that no rule carries to another shape.

    Raises:
        ScheduleError: naming the operation.
    """
    if phase.resizes and unruled:
        what = (
            f"{optimizer} remembers {', '.join(map(repr, unruled))}, for which there is no rule where a parameter "
            "changes its shape or scale; use an optimizer such as AdamW, Adam, SGD, RMSprop or Adagrad"
        )
        raise ScheduleError([Problem(schedule.where(phase.index - 1), what)])


def stages_of(args: MorphingConfig, train_dataset: Any, eval_dataset: Any) -> tuple[TrainingStage, ...]:
    """The one stage of a run without a plan, as long as the arguments say."""
    length = Length("steps", args.max_steps) if args.max_steps > 0 else Length("epochs", args.num_train_epochs)
    return (TrainingStage(SINGLE, train_dataset, eval_dataset, length),)


def check_planned(
    args: MorphingConfig, stages: Sequence[TrainingStage], positional: Sequence[Any], options: Mapping[str, Any]
) -> None:
    """Refuse data or lengths given beside the stages of a plan, and stages that a run which evaluates cannot.

    Raises:
        ConfigError: naming them.
    """
    beside = [name for name in ("train_dataset", "eval_dataset") if options.get(name) is not None]
    if positional:
        raise ConfigError("stages: give the other arguments by name (args=..., processing_class=...).")
    if args.max_steps > 0:
        beside.append("max_steps")
    if beside:
        raise ConfigError(f"stages: stand beside {', '.join(beside)}, which each stage has of its own; leave it out.")
    without = [stage.name for stage in stages if stage.eval_dataset is None]
    if without and args.eval_strategy != IntervalStrategy.NO:
        raise ConfigError(
            f"stages: {', '.join(map(repr, without))} without an eval_dataset, but the run evaluates (eval_strategy "
            f"{IntervalStrategy(args.eval_strategy).value!r}). Give one, or set eval_strategy to 'no'."
        )


def first_settings(args: MorphingConfig, course: Course, learning_rate: float) -> Settings:
    """The hyper-parameters where a run with these arguments begins.

    Args:
        learning_rate: that of the first param group.

    Raises:
        DataError: if an epoch has no complete batch.
    """
    settings = settings_of(args, learning_rate, 0)
    for index, stage in enumerate(course.stages):
        if len(course.cursor(index).layout(course.batch(settings))) < 1:
            of = "" if stage.name == SINGLE else f" of stage {stage.name!r}"
            raise DataError(
                f"train_dataset{of}: {len(stage.train_dataset)} samples make no complete batch of "
                f"{settings.batch_size} per device; lower per_device_train_batch_size or leave out "
                "dataloader_drop_last."
            )
    return settings_of(args, learning_rate, course.steps_from(0, settings))


def settings_of(args: MorphingConfig, learning_rate: float, steps: int) -> Settings:
    """The hyper-parameters that a run of `steps` steps with these arguments begins with."""
    interval = None
    if args.eval_strategy == IntervalStrategy.STEPS and args.eval_steps:
        interval = int(args.eval_steps) if args.eval_steps >= 1 else math.ceil(steps * args.eval_steps)
    return Settings(
        learning_rate=learning_rate,
        batch_size=args.per_device_train_batch_size,
        grad_accum=args.gradient_accumulation_steps,
        warmup_steps=args.get_warmup_steps(steps),
        eval_iters=args.eval_iters,
        eval_interval=interval,
        step_samples=args.step_samples,
    )
