"""What is checked and worked out before a run begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, has_length

from morphing_trainer.config import MorphingConfig
from morphing_trainer.data.cursor import Cursor
from morphing_trainer.errors import ConfigError, DataError, Problem, ScheduleError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.reporting.records import Phase
from morphing_trainer.run.learning_rate import STATEFUL
from morphing_trainer.run.steps import steps_in, total_steps
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
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        name = "FSDP" if trainer.is_fsdp_enabled else "DeepSpeed"
        raise ConfigError(f"{name}: not supported; launch with DDP (accelerate_configs/ddp.yaml) or on one device.")
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


def check_schedule(schedule: Schedule, args: MorphingConfig, has_scheduler: bool) -> None:
    """Refuse operations that this run's learning-rate schedule cannot carry out.

    Raises:
        ScheduleError: naming each.
    """
    if len(schedule) and has_scheduler:
        raise ConfigError(
            "optimizers: a learning-rate scheduler is bound to its optimizer and cannot follow a schedule; pass "
            "(optimizer, None) and choose the scheduler by lr_scheduler_type."
        )
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


def check_batch(schedule: Schedule, phase: Phase, samples: int, args: MorphingConfig) -> None:
    """Refuse a batch so large that an epoch has none: the run would end there without a word.

    Raises:
        ScheduleError: naming the operation that makes it so.
    """
    if steps_in(samples, phase.settings, args.world_size, args.dataloader_drop_last) < 1:
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


def new_cursor(dataset: Any, args: MorphingConfig) -> Cursor:
    """The start of the data's order.

    Raises:
        DataError: if the data set has no length, or no sample.
    """
    if dataset is None or not has_length(dataset):
        raise DataError(
            "train_dataset: has no length (it is missing or a stream), so its samples cannot be counted; pass a "
            "map-style data set."
        )
    seed = args.data_seed if args.data_seed is not None else args.seed
    return Cursor(len(dataset), seed, shuffle=args.train_sampling_strategy == "random")


def first_settings(args: MorphingConfig, cursor: Cursor, learning_rate: float) -> Settings:
    """The hyper-parameters where a run with these arguments begins.

    Args:
        cursor: at the start of the data.
        learning_rate: that of the first param group.

    Raises:
        DataError: if an epoch has no complete batch.
    """
    settings = Settings(
        learning_rate=learning_rate,
        batch_size=args.per_device_train_batch_size,
        grad_accum=args.gradient_accumulation_steps,
        warmup_steps=0,
        eval_iters=args.eval_iters,
        eval_interval=None,
    )
    steps = last_step(args, cursor, 0, settings)
    if steps < 1:
        raise DataError(
            f"train_dataset: {cursor.length} samples make no complete batch of {settings.batch_size} per device; "
            "lower per_device_train_batch_size or leave out dataloader_drop_last."
        )
    interval = None
    if args.eval_strategy == IntervalStrategy.STEPS and args.eval_steps:
        interval = int(args.eval_steps) if args.eval_steps >= 1 else math.ceil(steps * args.eval_steps)
    return Settings(**{**settings.to_dict(), "warmup_steps": args.get_warmup_steps(steps), "eval_interval": interval})


def last_step(args: MorphingConfig, cursor: Cursor, step: int, settings: Settings) -> int:
    """Optimizer step at which the run ends, as seen from `step`."""
    if args.max_steps > 0:
        return int(args.max_steps)
    return total_steps(args.num_train_epochs, cursor, step, settings, args.world_size, args.dataloader_drop_last)
