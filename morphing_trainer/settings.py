"""The hyper-parameters that a schedule may change, as one immutable value."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """What the hyper-parameter operations read and write. Pure data; the trainer puts it into force.

    Attributes:
        learning_rate: peak rate of the learning-rate schedule (the scheduler multiplies it by a factor in [0, 1]).
        batch_size: samples per device and micro-batch.
        grad_accum: micro-batches per optimizer step.
        warmup_steps: optimizer steps of linear warm-up, counted from `lr_anchor`.
        eval_iters: batches read by one evaluation; `None` reads the whole evaluation set.
        eval_interval: optimizer steps between evaluations; `None` when evaluation does not run by steps.
        lr_anchor: optimizer step at which the learning-rate schedule (last) began.
        step_samples: samples per optimizer step over all processes, where a step's last micro-batch is a smaller one
            (`batches.settled` keeps `grad_accum` fitting); None where all are alike.
    """

    learning_rate: float
    batch_size: int
    grad_accum: int
    warmup_steps: int
    eval_iters: int | None
    eval_interval: int | None
    lr_anchor: int = 0
    step_samples: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
