"""`MorphingConfig`: `transformers.TrainingArguments` plus what a morphing run needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import TrainingArguments

from morphing_trainer.errors import ConfigError
from morphing_trainer.run.launching import check_joined, check_launched
from morphing_trainer.training_options import TrainingOptions
from morphing_trainer.validation.names import metric_names


@dataclass
class MorphingConfig(TrainingOptions, TrainingArguments):
    """Training arguments of a morphing run: those of `TrainingArguments`, `TrainingOptions`, and the fields below.

    Some inherited defaults differ: `logging_nan_inf_filter` is off (it hides dead models and waits for the device at
    every step), progress is shown by this library's own display, evaluation and logging run by steps.

    Raises:
        ConfigError: for values that cannot work with morphing, or that would break a promise of the library.
    """

    scaling_schedule_file: str | None = field(
        default=None, metadata={"help": "YAML or JSON file with the operations to apply while training."}
    )
    eval_iters: int | None = field(
        default=None,
        metadata={"help": "Batches that each process reads in one evaluation. Default: the whole evaluation set."},
    )
    eval_metrics: list[str] | None = field(
        default=None,
        metadata={
            "help": "What an evaluation reports beside the loss: perplexity, token_accuracy, word_accuracy, or none. "
            "Default: all three from the command line, none from Python."
        },
    )
    eval_example: bool | None = field(
        default=None,
        metadata={
            "help": "Show at each evaluation how the model continues the first sample of the evaluation set. "
            "Default: yes from the command line, no from Python."
        },
    )
    eval_example_tokens: int = field(default=32, metadata={"help": "Tokens of that continuation, at most."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete the run that `output_dir` holds and start afresh."}
    )
    analysis_evals: int | None = field(
        default=None,
        metadata={
            "help": "Every so many evaluations, log the effective ranks of weights and adapters, and how far weights "
            "have turned. Takes a decomposition of every matrix, and 2 to 4 bytes of host memory each. Default: off."
        },
    )
    log_memory: bool = field(
        default=True,
        metadata={"help": "Log with every training loss how much memory is in use, and how busy the processor is."},
    )
    memory_pressure_percent: float | None = field(
        default=95.0,
        metadata={
            "help": "Save an emergency checkpoint when more of the machine's, container's or device's memory is used. "
            "0 is never."
        },
    )
    on_nan: Literal["stop", "rollback", "skip"] = field(
        default="stop",
        metadata={
            "help": "When a loss or gradient is NaN or infinite: stop ends the run; rollback goes back to the last "
            "checkpoint and leaves out the update of that step on the way; skip leaves it out at once, which waits for "
            "the device at every step."
        },
    )
    nan_limit: int = field(
        default=5,
        metadata={
            "help": "For on_nan: the run ends after so many updates left out in a row (skip), or when it would go back "
            "to the same checkpoint once more than so often (rollback)."
        },
    )
    reset_history: bool = field(
        default=False,
        metadata={"help": "On a resume: forget the statistics and log lines so far. Nothing that is trained changes."},
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

    async_save: bool = field(
        default=False,
        metadata={
            "help": "Write checkpoints beside the training, which then waits for a copy of the state only. Takes as "
            "much host memory as a checkpoint's size while one is being written, of which there is one at a time. "
            "Under FSDP2 it also waits until the weights are put together."
        },
    )

    loss_chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "Tokens whose logits are in memory at once while training: with a large vocabulary they take more "
            "than all else. The loss is the same to rounding; the backward pass makes them once more. Try 1024. "
            "Not with FSDP2, label smoothing or a loss of your own. Default: all."
        },
    )

    def __getstate__(self) -> dict[str, Any]:
        """For `training_args.bin`, which lies in every checkpoint and goes where that goes: never with the token."""
        return {**self.__dict__, "hub_token": None}

    def __post_init__(self) -> None:
        check_launched(self.deepspeed, self.fsdp, self.fsdp_config)
        self.resolve_before()
        super().__post_init__()
        check_joined(self.world_size)
        self.resolve_after()
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
        self.eval_metrics = metric_names(self.eval_metrics)
        if self.eval_example_tokens < 1:
            raise ConfigError(
                f"eval_example_tokens: must be at least 1, is {self.eval_example_tokens}; set eval_example to false "
                "to show no example."
            )
        if self.analysis_evals is not None and self.analysis_evals < 1:
            raise ConfigError(
                f"analysis_evals: must be at least 1, is {self.analysis_evals}; 1 analyses at every evaluation, leave "
                "it out for never."
            )
        if self.analysis_evals is not None and str(getattr(self.eval_strategy, "value", self.eval_strategy)) == "no":
            raise ConfigError(
                "analysis_evals: counts evaluations, and this run makes none; set eval_strategy: steps and eval_steps."
            )
        if self.memory_pressure_percent is not None and not 0 <= self.memory_pressure_percent <= 100:
            raise ConfigError(
                f"memory_pressure_percent: must be from 0 to 100, is {self.memory_pressure_percent}; 0 is never."
            )
        if self.loss_chunk_size is not None:
            self._check_chunks(self.loss_chunk_size)
        if self.on_nan not in ("stop", "rollback", "skip"):
            raise ConfigError(f"on_nan: must be stop, rollback or skip, is {self.on_nan!r}.")
        if self.nan_limit < 1:
            raise ConfigError(f"nan_limit: must be at least 1, is {self.nan_limit}.")
        if self.on_nan == "rollback" and str(getattr(self.save_strategy, "value", self.save_strategy)) == "no":
            raise ConfigError(
                "on_nan: rollback goes back to a checkpoint, and this run saves none; set save_strategy: steps and "
                "save_steps, or on_nan: stop or skip."
            )
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

    def _check_chunks(self, size: int) -> None:
        if size < 1:
            raise ConfigError(
                f"loss_chunk_size: must be at least 1 token, is {size}; leave it out to take all at once."
            )
        if self.label_smoothing_factor:
            raise ConfigError("loss_chunk_size: smoothed labels need all logits; remove it, or label_smoothing_factor.")
