"""What the displays, the journal and the plots are made from: plain immutable values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from morphing_trainer.settings import Settings


@dataclass(frozen=True)
class Phase:
    """The run between two operations, as the dry run predicts it. Phase 0 is the start (no operation).

    `layers`, `hidden`, `mlp`: blocks, width of the residual stream, width of the MLP.
    `parameters`, `trainable`: numbers of scalars, tied tensors counted once.
    `lora_rank`, `lora_modules`: largest rank of a LoRA adapter, and number of modules that have one; 0 for none.
    `repeats`: the operation is one of those that are repeated to the end of the run; this is their first round.
    `measures`: its operation sets what only a trial on the live model tells; the settings are those before it.
    `resizes`: its operation changes the shape or scale of tensors, and of the optimizer's memory with them.
    """

    index: int
    operation: str | None
    value: Any
    trigger: str
    layers: int
    hidden: int
    mlp: int
    parameters: int
    trainable: int
    settings: Settings
    lora_rank: int = 0
    lora_modules: int = 0
    resizes: bool = False
    repeats: bool = False
    measures: bool = False


@dataclass(frozen=True)
class Record:
    """One operation that was applied.

    Attributes:
        index: position in the schedule, from 0.
        trigger: what fired, in words.
        step, tokens: optimizer steps and training tokens seen when it was applied.
        before, after: `layers`, `hidden`, `mlp`, `parameters`, `trainable`, `lora_rank`, `lora_modules` (both as in
            `Phase`; missing means 0), `loss` (evaluation loss or `None`) and the fields of `Settings`.
        moments: trainable scalars whose optimizer moments were `carried`, `scaled`, are `newborn`, or were `dropped`
            (their parameter was frozen). All 0 where the operation does not touch the optimizer.
        seconds: wall-clock time of the whole change, re-preparation included, re-evaluation excluded.
        preserving: whether the model's function stays as it was; `None` where the operation touches no weights.
        multipliers: the run's multipliers and divisors after it.
        note: anything the operation reports about its work.
        warning: why it changed nothing.
    """

    index: int
    operation: str
    value: Any
    desc: str | None
    trigger: str
    step: int
    tokens: int
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    moments: Mapping[str, int]
    seconds: float
    preserving: bool | None
    multipliers: Mapping[str, float]
    note: str = ""
    warning: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Upcoming:
    """The next operation, and how far its trigger is, in words."""

    operation: str
    value: Any
    progress: str = field(default="")
