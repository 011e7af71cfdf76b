"""`morph`: one operation in anybody's own training loop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from morphing_trainer.engine import groups_of, grow, install_states, rebuild_optimizer, states_by_name
from morphing_trainer.errors import OperationError, ScheduleError
from morphing_trainer.lineage import Census, ModelSpec
from morphing_trainer.operations import ArchitectureOperation, Operation
from morphing_trainer.planning import operation_rng
from morphing_trainer.reporting.records import Record
from morphing_trainer.schedule import Schedule


class Morphed(NamedTuple):
    """What `morph` returns: the new model, the new optimizer (None if none was given), and what was done."""

    model: PreTrainedModel
    optimizer: Optimizer | None
    record: Record


def morph(
    model: nn.Module,
    operation: Operation | Mapping[str, Any],
    optimizer: Optimizer | None = None,
    *,
    seed: int = 0,
) -> Morphed:
    """Apply one architecture operation to a model and carry the optimizer's memory along.

    ```python
    model, optimizer, record = morph(model, {"name": "widen_mlp", "value": 2}, optimizer=optimizer, seed=0)
    ```

    Unchanged tensors are shared with the old model, which must not be trained any further. Gradients are not carried:
    call it after `optimizer.step()`. A learning-rate scheduler holds on to the optimizer that it was made for: make a
    new one.

    Args:
        model: a supported, unwrapped model (`GPT2LMHeadModel`).
        operation: an operation, or the mapping that would stand in a schedule.
        optimizer: any torch optimizer over the model's parameters. The new one has the same class and param groups.
        seed: of the operation's random choices; the global random state is neither read nor changed.

    Raises:
        OperationError: if the operation does not fit the model, or changes hyper-parameters only.
        ScheduleError: if the mapping is not a valid operation.
        ModelError: if the model's family is not supported.
    """
    start = time.perf_counter()
    chosen = _parsed(operation)
    if not isinstance(chosen, ArchitectureOperation):
        raise OperationError(
            f"{chosen.name}: changes settings of a training run, not the model; in your own loop set them yourself"
        )
    spec = ModelSpec.of(model)
    assert isinstance(model, PreTrainedModel)
    states = {} if optimizer is None else states_by_name(model, optimizer)
    groups = dict.fromkeys(spec.shapes, 0) if optimizer is None else groups_of(model, optimizer, spec)
    grown = grow(chosen, spec, model, states, groups, operation_rng(seed, 0))
    new_optimizer = None
    if optimizer is not None:
        new_optimizer = rebuild_optimizer(optimizer, grown.model, grown.groups)
        install_states(grown.model, new_optimizer, grown.states)
    record = Record(
        index=0,
        operation=chosen.name,
        value=chosen.value,
        desc=None,
        trigger="called",
        step=0,
        tokens=0,
        before=spec.facts(),
        after=grown.morph.spec.facts(),
        moments=asdict(grown.census if optimizer is not None else Census()),
        seconds=time.perf_counter() - start,
        preserving=grown.morph.preserving,
        multipliers={},
        note=grown.morph.note,
    )
    return Morphed(grown.model, new_optimizer, record)


def _parsed(operation: Operation | Mapping[str, Any]) -> Operation:
    if isinstance(operation, Operation):
        return operation
    try:
        return Schedule.of([{**operation, "max_wait_iters": 0}]).entries[0].operation
    except ScheduleError as error:
        # The trigger is ours, not the caller's: keep it out of the message.
        message = str(error).replace("schedule: entry 1, name", "operation").replace("schedule: entry 1 ", "operation ")
        raise OperationError(message.replace(", max_wait_iters", "")) from None
