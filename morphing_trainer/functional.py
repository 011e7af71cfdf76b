"""`morph`: one operation in anybody's own training loop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from morphing_trainer.engine import groups_of, grow, install_states, rebuild_optimizer, states_by_name
from morphing_trainer.errors import OperationError, ScheduleError
from morphing_trainer.lineage import Census, ModelSpec
from morphing_trainer.lineage.adapters import bare
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
        model: a supported, unwrapped model (`GPT2LMHeadModel`), or a `PeftModel` of one: the new one has its adapters.
        operation: an operation, or the mapping that would stand in a schedule.
        optimizer: any torch optimizer over the model's parameters. The new one has the same class and param groups.
        seed: of the operation's random choices; the global random state is neither read nor changed.

    Raises:
        OperationError: if the operation is not valid, does not fit the model, or changes hyper-parameters only; or if
            the optimizer is not one over the model's trainable parameters.
        ModelError: if the model's family is not supported.
    """
    start = time.perf_counter()
    chosen = parsed(operation)
    if not isinstance(chosen, ArchitectureOperation):
        raise OperationError(
            f"{chosen.name}: changes settings of a training run, not the model; in your own loop set them yourself"
        )
    model = bare(model)
    spec = ModelSpec.of(model)
    assert isinstance(model, PreTrainedModel)
    if optimizer is not None:
        _check(model, optimizer)
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
        warning=grown.morph.warning,
    )
    return Morphed(grown.model, new_optimizer, record)


def parsed(operation: Operation | Mapping[str, Any]) -> Operation:
    """An operation that is given as it stands in a schedule, without a trigger.

    Raises:
        OperationError: if it is not valid.
    """
    if isinstance(operation, Operation):
        return operation
    if not isinstance(operation, Mapping):
        raise OperationError(
            f"operation: must be a mapping such as {{'name': 'widen_mlp', 'value': 2}}, is {operation!r}"
        )
    if timed := [key for key in ("trigger_loss", "max_wait_iters", "when", "reevaluate", "repeat") if key in operation]:
        raise OperationError(f"operation: {', '.join(timed)} belongs in a schedule; here it is applied at once")
    try:
        return Schedule.of([{**operation, "max_wait_iters": 0}]).entries[0].operation
    except ScheduleError as error:
        # The trigger is ours, not the caller's: keep it out of the message.
        message = str(error).replace("schedule: entry 1, name", "operation").replace("schedule: entry 1 ", "operation ")
        raise OperationError(message.replace(", max_wait_iters", "")) from None


def _check(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse an optimizer whose memory would be lost, or that would train what it did not train before."""
    kind = type(optimizer).__name__
    if isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        raise OperationError(f"optimizer: {kind} wraps another; pass its .optimizer, and wrap the new one afterwards")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise OperationError(
            "optimizer: LBFGS keeps one memory for all parameters together, which cannot follow them; use another, "
            "or pass none and make a new one"
        )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if strangers := held - names.keys():
        raise OperationError(
            f"optimizer: {len(strangers)} of its {len(held)} tensors are not parameters of the model, so they would be "
            "lost; pass the model that the optimizer was made for"
        )
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if missing := [name for name, parameter in trained if id(parameter) not in held]:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise OperationError(
            f"optimizer: does not hold {missing[0]}{others}, which take gradients; add them to it, or freeze them with "
            "requires_grad_(False)"
        )
