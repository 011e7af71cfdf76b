"""Applying one operation to a live Trainer: all of it, or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.optim import Optimizer
from transformers import PreTrainedModel

from morphing_trainer.config import MorphingConfig
from morphing_trainer.engine import (
    Grown,
    grow,
    hand_on_marks,
    inherit_groups,
    install_states,
    noting_loss,
    optimizer_names,
    own,
    rebuild_optimizer,
    skeleton,
    states_by_name,
)
from morphing_trainer.lineage import Census, cut, transplant_states, transplant_weights
from morphing_trainer.operations import ArchitectureOperation, Morph
from morphing_trainer.planning import operation_rng
from morphing_trainer.run.digest import agree, agree_on, parts_of_lineage
from morphing_trainer.run.state import RunState
from morphing_trainer.settings import Settings
from morphing_trainer.sharding import ShardedMover, gathered, is_sharded, reshard

MUTABLE = ("per_device_train_batch_size", "gradient_accumulation_steps", "step_samples", "eval_iters")
"""Training arguments that `enforce` changes."""


class CurrentModel:
    """Stands for the model of the moment in places that would hold on to the first one."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer.model_wrapped, name)


def bare_optimizer(trainer: Any) -> Optimizer:
    """The torch optimizer inside accelerate's wrapper."""
    optimizer = trainer.optimizer
    bare: Optimizer = getattr(optimizer, "optimizer", optimizer)
    return bare


def enforce(settings: Settings, args: MorphingConfig) -> None:
    """Put the settings that the loop reads from its arguments into force."""
    args.per_device_train_batch_size = settings.batch_size
    args.gradient_accumulation_steps = settings.grad_accum
    args.step_samples = settings.step_samples
    args.eval_iters = settings.eval_iters


@contextmanager
def restored_on_failure(trainer: Any, *, forking: bool = True) -> Iterator[None]:
    """Leave model, optimizer and scheduler as they were if the block raises.

    Args:
        forking: what the block draws of the global random numbers is never drawn for the rest of the run.
    """
    names = ("model", "model_wrapped", "optimizer", "lr_scheduler", "_created_lr_scheduler")
    before = {name: getattr(trainer, name) for name in names}
    prepared = ("_models", "_optimizers", "_schedulers", "_dataloaders")
    lists = {name: getattr(trainer.accelerator, name) for name in prepared}
    handler = {name: getattr(trainer.callback_handler, name) for name in ("model", "optimizer", "lr_scheduler")}
    device = trainer.args.device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], enabled=forking):
            yield
    except BaseException:
        for owner, values in ((trainer, before), (trainer.accelerator, lists), (trainer.callback_handler, handler)):
            for name, value in values.items():
                setattr(owner, name, value)
        raise


def transplant(trainer: Any, state: RunState, operation: ArchitectureOperation, index: int) -> tuple[Morph, Census]:
    """Put the grown model and its optimizer in the place of the old ones, prepared with Accelerator.

    Raises:
        OperationError: if the operation does not fit; anything that raises leaves the trainer as it was.
    """
    model = trainer.bare_model
    with restored_on_failure(trainer):
        way = _transplant_sharded if is_sharded(model) else _transplant_whole
        grown = way(trainer, model, state, operation, index)
    state.spec, state.groups = grown.morph.spec, grown.groups
    return grown.morph, grown.census


def _transplant_whole(
    trainer: Any, model: PreTrainedModel, state: RunState, operation: ArchitectureOperation, index: int
) -> Grown:
    """Every process grows the whole model."""
    optimizer, grown, failure = bare_optimizer(trainer), None, None
    try:
        states = states_by_name(model, optimizer)
        grown = grow(operation, state.spec, model, states, state.groups, operation_rng(trainer.args.seed, index))
    except Exception as error:  # of any kind: the other ranks must not wait for this one in vain
        failure = error
    trainer.session.consensus.settle(failure)
    assert grown is not None
    # Before DDP is made, which would send rank 0's weights to the others and hide a difference.
    agree(trainer.session.consensus, grown.model.named_parameters(), grown.states, _where(operation, state))
    _prepare(trainer, grown.model, rebuild_optimizer(optimizer, grown.model, grown.groups))
    install_states(grown.model, bare_optimizer(trainer), grown.states)
    return grown


def _transplant_sharded(
    trainer: Any, model: PreTrainedModel, state: RunState, operation: ArchitectureOperation, index: int
) -> Grown:
    """Every process moves its rows of the model, which is divided before it has weights.

    So a process holds the old rows, the new ones, and one tensor as a whole at a time.
    """
    settle = trainer.session.consensus.settle
    optimizer, made, failure = bare_optimizer(trainer), None, None
    reshard(model)
    old = dict(model.named_parameters())
    try:
        morph = operation.morph(state.spec, operation_rng(trainer.args.seed, index))
        groups = inherit_groups(morph.lineage, state.groups)
        new = skeleton(morph.spec, like=model)
        made = rebuild_optimizer(optimizer, new, groups)
    except Exception as error:  # of any kind: the other ranks must not wait for this one in vain
        failure = error
    settle(failure)
    assert made is not None
    # Of what they will hold, each has other rows: what these are computed from must be the same.
    agree_on(trainer.session.consensus, lambda: parts_of_lineage(morph.lineage), _where(operation, state))
    morph = noting_loss(
        morph, gathered(old, [name for product in cut(morph.lineage) for name in (product.a, product.b)])
    )
    states, names = states_by_name(model, optimizer), optimizer_names(new, made)
    _prepare(trainer, new, made)
    new = trainer.bare_model
    mover = ShardedMover(old, dict(new.named_parameters()), settle)
    own(new, morph.spec, transplant_weights(morph.lineage, old, mover))
    hand_on_marks(morph.lineage, old, new)
    _own_parameters(bare_optimizer(trainer), new, names)
    sizes = {name: parameter.numel() for name, parameter in new.named_parameters()}
    new_states, census = transplant_states(morph.lineage, states, sizes, morph.spec.untrained, mover)
    agree(trainer.session.consensus, new.named_parameters(), new_states, _where(operation, state))
    install_states(new, bare_optimizer(trainer), new_states)
    return Grown(morph, new, groups, new_states, census)


def _where(operation: ArchitectureOperation, state: RunState) -> str:
    return f"after {operation.name} at step {state.step}"


def _prepare(trainer: Any, model: PreTrainedModel, optimizer: Optimizer) -> None:
    """Wrap a new model and its optimizer as Accelerate wrapped the old ones."""
    schedule_state = trainer.lr_scheduler.state_dict()
    # Accelerate keeps what it has prepared; the old model must not stay alive, nor be taken for the new one.
    trainer.accelerator.free_memory()
    if trainer.args.torch_compile:
        torch._dynamo.reset()
    trainer.model = trainer.model_wrapped = model
    trainer.optimizer = optimizer
    trainer.lr_scheduler = None
    with _without_broadcast(trainer) if trainer.is_fsdp_enabled else nullcontext():
        trainer.prepare_again(schedule_state)


@contextmanager
def _without_broadcast(trainer: Any) -> Iterator[None]:
    """Do not let Accelerate fetch the weights from rank 0, which has none of a model that is still to be filled."""
    plugin = trainer.accelerator.state.fsdp_plugin
    before, plugin.cpu_ram_efficient_loading = plugin.cpu_ram_efficient_loading, False
    try:
        yield
    finally:
        plugin.cpu_ram_efficient_loading = before


def _own_parameters(optimizer: Optimizer, model: PreTrainedModel, names: list[list[str]]) -> None:
    """Make the optimizer work on the parameters of `model`, by the names in each of its param groups.

    Accelerate tells parameters apart by where they lie in memory, and before they are filled they lie nowhere.
    """
    parameters: Mapping[str, Any] = dict(model.named_parameters())
    for group, chosen in zip(optimizer.param_groups, names, strict=True):
        group["params"] = [parameters[name] for name in chosen]
