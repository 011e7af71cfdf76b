"""Options of a run that `TrainingArguments` does not have, or has under one name only, and what they mean together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from transformers.training_args import OptimizerNames

from morphing_trainer.errors import ConfigError
from morphing_trainer.optimizers import DEFAULT, ShortName, check_made, default_weight_decay, optim_for, resolved
from morphing_trainer.run.batches import Batches, split
from morphing_trainer.run.learning_rate import STATEFUL

_TRAINERS = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
"""Trainer's own names for the batch, and its defaults."""


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class TrainingOptions:
    """Mixed into `MorphingConfig`, ahead of `TrainingArguments`.

    A default of None stands for "not given". Where the type has none, it is resolved when the object is made.
    """

    optimizer: ShortName | None = field(
        default=None,
        metadata={"help": "The optimizer. Default: adamw (fused, as Trainer's). More of them go by `optim`."},
    )
    optim: OptimizerNames | str = field(
        default=None,  # type: ignore[assignment]
        metadata={"help": f"An optimizer by Trainer's name, instead of `optimizer`. Default: {DEFAULT}."},
    )
    momentum: float | None = _option(
        None, "Momentum of the optimizers sgd (default 0.9; 0 as optim: sgd) and rmsprop (default 0)."
    )
    weight_decay: float = _option(
        None,
        "Weight decay of matrices that are no embeddings. Default: the optimizer's own, 0.01 for adamw and 0 for "
        "others. Biases, LayerNorms, embeddings, and what has skip_weight_decay = True do not decay.",
    )
    batch_size: int | None = _option(
        None,
        "Samples per optimizer step, over all processes. Instead of per_device_train_batch_size and "
        "gradient_accumulation_steps.",
    )
    mini_batch_size: int | None = _option(
        None,
        "Of `batch_size`, how many samples a device computes at once; the last part of a step may be smaller. "
        "Default: its whole share.",
    )
    per_device_train_batch_size: int = _option(
        None, "Samples that a device computes at once. Default: 8. The same as mini_batch_size."
    )
    gradient_accumulation_steps: int = _option(
        None,
        "Such parts per optimizer step. Default: 1. This times per_device_train_batch_size times the number of "
        "processes is what batch_size says in one number.",
    )
    ignore_optimizer: bool = _option(
        False, "Resume with the checkpoint's weights and position, but with a new optimizer, of any kind."
    )
    optimizer_warmup_steps: int = _option(
        0,
        "Steps in which the learning rate rises from 0 to what its schedule says, after an optimizer has begun "
        "without memory: at the start of a run, or after ignore_optimizer. Against the loss spike of loaded models.",
    )
    optimizer_warmup_fraction: float = _option(
        0.0, "The same as a fraction of all steps of the run; instead of optimizer_warmup_steps."
    )
    default_freeze: bool = _option(False, "Begin with everything frozen but what `train_only` names, and adapters.")
    train_only: list[str] | str | None = field(
        default=None,
        metadata={"help": "With default_freeze: components that are trained, such as attn.* mlp.0-3 ln_f."},
    )
    check_grads: bool = _option(
        False, "Warn of parameters that have no gradient, at the first step and at the first after a morph."
    )
    early_stopping_patience: int | None = _option(
        None,
        "Stop after so many evaluations in a row without a better metric_for_best_model (default: loss), and restore "
        "the best weights, which are saved whenever there are new ones.",
    )
    early_stopping_threshold: float = _option(
        0.0, "By more than this the metric must be better to count, for early_stopping_patience."
    )

    def resolve_before(self) -> None:
        """What must be known before `TrainingArguments` looks at its own fields.

        Raises:
            ConfigError: for options that contradict each other.
        """
        self.optim = optim_for(self.optimizer, self.optim)
        args: Any = self
        self.optimizer, self.momentum = resolved(self.optimizer, self.optim, args.optim_args, self.momentum)
        if self.weight_decay is None:
            self.weight_decay = default_weight_decay(self.optimizer, self.optim)
        if args.ddp_find_unused_parameters is None:
            # Every parameter that is trained takes part in every step, whatever was frozen, thawed or added.
            args.ddp_find_unused_parameters = False
        if self.optimizer_warmup_steps and self.optimizer_warmup_fraction:
            raise ConfigError("optimizer_warmup_steps: stands beside optimizer_warmup_fraction; remove one of them.")
        if self.train_only is not None and not self.default_freeze:
            raise ConfigError("train_only: has no effect without default_freeze; set default_freeze: true.")
        self._check_ranges()
        # Trainer would ask for saving and evaluating at the same steps; here every new best is saved, see `stopping`.
        self._stops_early = self.early_stopping_patience is not None
        if self._stops_early:
            self.load_best_model_at_end = False
        self._given = {name: getattr(self, name) for name in _TRAINERS}
        for name, usual in _TRAINERS.items():
            if self._given[name] is None:
                setattr(self, name, usual)

    def resolve_after(self) -> None:
        """What needs devices, processes and Trainer's own values.

        Raises:
            ConfigError: for options that cannot be carried out.
        """
        args: Any = self
        if args.fp16 and args.device.type == "cpu":
            raise ConfigError("fp16: needs a GPU, and this run is on the CPU; use bf16 there, or neither.")
        if args.device.type == "cpu":  # `TrainingArguments` does so for use_cpu only, and torch warns of the others
            args.dataloader_pin_memory = False
        check_made(args)
        if str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) in STATEFUL and self.warmup_after_load(
            1
        ):
            raise ConfigError(
                f"optimizer_warmup_steps: lr_scheduler_type {args.lr_scheduler_type.value!r} sets the rate by the loss "
                "and has no warm-up; use one that is a function of the step, such as constant_with_warmup."
            )
        self.step_samples = self._batches(args.world_size)
        if self._stops_early:
            self._prepare_stopping(args)

    def warmup_after_load(self, steps: int) -> int:
        """Steps of the optimizer's warm-up in a run of `steps` steps."""
        return self.optimizer_warmup_steps or math.ceil(steps * self.optimizer_warmup_fraction)

    def _batches(self, processes: int) -> int | None:
        """Resolve the batch into Trainer's names; the samples of an uneven step."""
        if self.batch_size is None:
            if self.mini_batch_size is not None:
                raise ConfigError(
                    "mini_batch_size: is a part of batch_size, which is missing; give that too, or "
                    "per_device_train_batch_size instead."
                )
            return None
        found: Batches = split(self.batch_size, self.mini_batch_size, processes)
        for name, value in zip(_TRAINERS, found, strict=False):
            if self._given[name] not in (None, value):
                raise ConfigError(
                    f"batch_size: stands beside {name}; give the batch either by batch_size and mini_batch_size or by "
                    "per_device_train_batch_size and gradient_accumulation_steps."
                )
            setattr(self, name, value)
        return found.step_samples

    def _prepare_stopping(self, args: Any) -> None:
        strategy = str(getattr(args.eval_strategy, "value", args.eval_strategy))
        if strategy == "no":
            raise ConfigError(
                "early_stopping_patience: counts evaluations, and this run makes none; set eval_strategy: steps and "
                "eval_steps."
            )
        args.load_best_model_at_end = True
        if str(getattr(args.save_strategy, "value", args.save_strategy)) == "no":
            args.save_strategy = type(args.save_strategy)("best")
        if args.metric_for_best_model is None:
            args.metric_for_best_model, args.greater_is_better = "loss", False

    def _check_ranges(self) -> None:
        at_least: dict[str, float] = {"batch_size": 1, "mini_batch_size": 1, "early_stopping_patience": 1}
        at_least |= dict.fromkeys(("weight_decay", "momentum", "early_stopping_threshold"), 0)
        at_least |= dict.fromkeys(("optimizer_warmup_steps", "optimizer_warmup_fraction"), 0)
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise ConfigError(f"{name}: must be at least {least}, is {value}.")
        if self.momentum is not None and self.momentum >= 1:
            raise ConfigError(f"momentum: must be below 1, is {self.momentum}.")
        if self.optimizer_warmup_fraction > 1:
            raise ConfigError(f"optimizer_warmup_fraction: must be at most 1, is {self.optimizer_warmup_fraction}.")
