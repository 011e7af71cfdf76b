"""What the run's part of a checkpoint looks like: held against its form before anything is made of it.

The manifest tells that a file is the one that was written, not that we wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Number = Annotated[int, Field(ge=0, le=2**62)]
Positive = Annotated[int, Field(ge=1, le=2**62)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Position(_Part):
    done: Number
    since: Number
    pending: str | None


class _Settings(_Part):
    learning_rate: Seconds
    batch_size: Positive
    grad_accum: Positive
    warmup_steps: Number
    eval_iters: Positive | None
    eval_interval: Positive | None
    lr_anchor: Number
    step_samples: Positive | None


class _Entry(_Part):
    name: str


class _Executed(_Part):
    index: Number
    step: Number
    stage: Number
    entry: _Entry


class _Totals(_Part):
    steps: Number
    samples: Number
    tokens: Number
    dropped: Number
    loss_tokens: Number


class _State(_Part):
    spec: dict[str, Any]
    began: dict[str, Any]
    groups: dict[str, Number]
    initial: _Settings
    settings: _Settings
    cursor: dict[str, Any]
    position: _Position
    stages: Annotated[dict[str, Number], Field(min_length=1)]
    stage_end: Number
    stage_tokens: Number
    epochs_before: Number
    next_stage: Number | None
    totals: dict[str, _Totals]
    step: Number
    end: Number
    planned: Number
    tokens: Number
    seconds: Seconds
    ramp: Annotated[list[Number], Field(min_length=2, max_length=2)]
    executed: list[_Executed]
    halvings: list[dict[str, Number]]


class _Stage(_Part):
    name: str
    samples: Number
    data: Any
    length: Any


class _Arguments(_Part):
    world_size: Positive


class _Bundle(_Part):
    state: _State
    arguments: _Arguments
    schedule: list[dict[str, Any]]
    stages: list[_Stage]
    optimizer_names: list[list[str]]


def check_shape(data: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the first field that is not what a run writes."""
    try:
        found = _Bundle.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{place[:100]}: {first['msg']}") from None
    reached = len(found.state.stages)
    if len(found.stages) < reached:
        raise ValueError(f"stages: {reached} have been reached of {len(found.stages)}")
    if any(executed.stage >= reached for executed in found.state.executed):
        raise ValueError("executed: an operation was executed in a stage that has not been reached")
