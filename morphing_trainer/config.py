"""`MorphingConfig`: `transformers.TrainingArguments` plus what a morphing run needs."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from morphing_trainer.errors import ConfigError


@dataclass
class MorphingConfig(TrainingArguments):
    """Training arguments of a morphing run: those of `TrainingArguments`, and the fields below.

    Some inherited defaults differ: `logging_nan_inf_filter` is off (it hides dead models and waits for the device at
    every step), progress is shown by this library's own display, evaluation and logging run by steps.

    Raises:
        ConfigError: for values that cannot work with morphing, or that would break a promise of the library.
    """

    scaling_schedule_file: str | None = field(
        default=None, metadata={"help": "YAML or JSON file with the operations to apply while training."}
    )
    eval_iters: int | None = field(
        default=None, metadata={"help": "Batches read by one evaluation. Default: the whole evaluation set."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete the run that `output_dir` holds and start afresh."}
    )
    save_merged: bool = field(
        default=True,
        metadata={
            "help": "Save the trained model as a plain one, LoRA adapters merged. Without, base and adapters are saved."
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Must stay off: a filtered loss could fire a trigger on a dead model."}
    )
    save_total_limit: int | None = field(
        default=3, metadata={"help": "Checkpoints to keep, at least 2: the last one may turn out to be damaged."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.logging_nan_inf_filter:
            raise ConfigError(
                "logging_nan_inf_filter: must stay false. It replaces NaN losses by averages, so that a dead model "
                "looks alive and fires triggers; remove the setting."
            )
        if self.save_total_limit is not None and self.save_total_limit < 2:
            raise ConfigError(
                f"save_total_limit: must be at least 2, is {self.save_total_limit}. The newest checkpoint may turn out "
                "to be damaged; resuming then needs the one before."
            )
        if self.eval_iters is not None and self.eval_iters < 1:
            raise ConfigError(f"eval_iters: must be at least 1 batch, is {self.eval_iters}; leave it out to read all.")
        if self.enable_jit_checkpoint:
            raise ConfigError(
                "enable_jit_checkpoint: not supported, because it saves in the middle of a step, after dropout has "
                "drawn, and does not resume exactly. SIGTERM and Ctrl+C are handled without it; remove the setting."
            )
        if self.auto_find_batch_size:
            raise ConfigError(
                "auto_find_batch_size: not supported, because it restarts the training loop behind the schedule's "
                "back. Set per_device_train_batch_size, and raise gradient_accumulation_steps if memory is short."
            )
        if self.deepspeed:
            raise ConfigError("deepspeed: not supported. Launch with DDP instead (accelerate_configs/ddp.yaml).")
