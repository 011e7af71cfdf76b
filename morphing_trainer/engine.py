"""The engine: one architecture operation on live objects, all or nothing.

Nothing of the old model or optimizer is modified. Unchanged tensors are shared with the new model, so the old one
must not be trained further once the new one is in use; until then it is whole.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from morphing_trainer.lineage import (
    Census,
    Lineage,
    ModelSpec,
    has_no_rule,
    lost,
    transplant_states,
    transplant_weights,
)
from morphing_trainer.operations import ArchitectureOperation, Morph
from morphing_trainer.optimizers import SKIP_MARK

Groups = Mapping[str, int]
"""Parameter name -> index of its param group, frozen parameters included."""


@dataclass(frozen=True)
class Grown:
    """What an operation makes of a model and its optimizer.

    Attributes:
        morph: the operation's description of the change.
        model: the new model, same class, weights by lineage.
        groups: param group of every parameter.
        states: parameter name -> optimizer state, to be installed once the optimizer is in place.
        census: what became of the moments.
    """

    morph: Morph
    model: PreTrainedModel
    groups: dict[str, int]
    states: dict[str, dict[str, Any]]
    census: Census


def grow(
    operation: ArchitectureOperation,
    spec: ModelSpec,
    model: PreTrainedModel,
    states: Mapping[str, Mapping[str, Any]],
    groups: Groups,
    rng: torch.Generator,
) -> Grown:
    """Apply `operation` to an unwrapped model.

    Args:
        spec: the model's description.
        states: parameter name -> optimizer state.
        groups: parameter name -> param group.
        rng: source of the operation's random choices. The global generators are not touched.

    Raises:
        OperationError: if the operation does not fit; nothing has changed then.
    """
    old = dict(model.named_parameters())
    morph = noting_loss(operation.morph(spec, rng), old)
    weights = transplant_weights(morph.lineage, old)
    new = dressed(morph.spec, weights, like=model)
    hand_on_marks(morph.lineage, old, new)
    sizes = {name: parameter.numel() for name, parameter in new.named_parameters()}
    new_states, census = transplant_states(morph.lineage, states, sizes, morph.spec.untrained)
    return Grown(morph, new, inherit_groups(morph.lineage, groups), new_states, census)


def noting_loss(morph: Morph, old: Mapping[str, torch.Tensor]) -> Morph:
    """The morph, with a note on what it drops of adapters. `old` needs to hold these only (`lineage.factors.cut`)."""
    gone, whole = lost(morph.lineage, old)
    if not whole:
        return morph
    share = f"{gone / whole:.2%} of the adapters' norm was dropped ({gone:.3g} of {whole:.3g})"
    return replace(morph, note=", ".join(part for part in (morph.note, share) if part))


def dressed(
    spec: ModelSpec, weights: Mapping[str, torch.Tensor], like: PreTrainedModel | None = None
) -> PreTrainedModel:
    """A model of description `spec` that owns `weights` (no copy), with the run-time switches of `like`."""
    new = skeleton(spec, like)
    own(new, spec, weights)
    return new


def own(model: nn.Module, spec: ModelSpec, weights: Mapping[str, torch.Tensor]) -> None:
    """Make `weights` the parameters of a model of description `spec`, without a copy."""
    still = spec.untrained
    parameters = {name: nn.Parameter(tensor, requires_grad=name not in still) for name, tensor in weights.items()}
    parameters |= {name: parameters[owner] for name, owner in spec.tied.items()}
    model.load_state_dict(parameters, strict=True, assign=True)


def skeleton(spec: ModelSpec, like: PreTrainedModel | None = None) -> PreTrainedModel:
    """A model of description `spec` without weights (on the meta device), with the run-time switches of `like`."""
    new = spec.build("meta")
    if like is not None:
        new.train(like.training)
        new.generation_config = like.generation_config
        new.loss_type = like.loss_type
        _share_buffers(like, new)
        _copy_checkpointing(like, new)
    return new


def hand_on_marks(lineage: Lineage, old: Mapping[str, nn.Parameter], new: nn.Module) -> None:
    """Mark the parameters of `new` that must not decay as their kin among `old` are marked."""
    for name, parameter in new.named_parameters():
        if name in lineage.origins and getattr(old[lineage.kin(name)], SKIP_MARK, False):
            setattr(parameter, SKIP_MARK, True)


def _share_buffers(like: PreTrainedModel, new: PreTrainedModel) -> None:
    """Give `new` the buffers that no checkpoint holds, such as the frequencies of rotary embeddings: modules compute
    them when they are made, and on the meta device they come to nothing."""
    known = dict(like.named_buffers())
    for name, buffer in new.named_buffers():
        if buffer.is_meta and name in known and known[name].shape == buffer.shape:
            module, _, last = name.rpartition(".")
            setattr(new.get_submodule(module), last, known[name])


def _copy_checkpointing(like: PreTrainedModel, new: PreTrainedModel) -> None:
    """Recompute activations in `new` where `like` does; further blocks repeat the pattern of `like`'s."""
    pairs: list[tuple[nn.Module, nn.Module]] = [(like, new), (like.base_model, new.base_model)]
    old_blocks, new_blocks = (
        [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        for model in (like, new)
    )
    pairs += [(old_blocks[number % len(old_blocks)], block) for number, block in enumerate(new_blocks) if old_blocks]
    for old_module, new_module in pairs:
        for switch in ("gradient_checkpointing", "_gradient_checkpointing_func"):
            if hasattr(old_module, switch):
                setattr(new_module, switch, getattr(old_module, switch))
    if getattr(like, "_require_grads_hooks", None):
        new.enable_input_require_grads()


def states_by_name(model: nn.Module, optimizer: Optimizer) -> dict[str, Mapping[str, Any]]:
    """Parameter name -> its optimizer state, for parameters that have one. The optimizer is asked by parameter."""
    state = optimizer.state
    return {name: state[parameter] for name, parameter in model.named_parameters() if state.get(parameter)}


def install_states(model: nn.Module, optimizer: Optimizer, states: Mapping[str, dict[str, Any]]) -> None:
    """Give the optimizer the state of each parameter, by name."""
    parameters = dict(model.named_parameters())
    for name, state in states.items():
        optimizer.state[parameters[name]] = state


def groups_of(model: nn.Module, optimizer: Optimizer, spec: ModelSpec, usual: Groups | None = None) -> dict[str, int]:
    """Param group of every parameter. One that is not in the optimizer (frozen) belongs where its like is.

    Args:
        usual: the groups that a run's own optimizer has. If this one has them, they also say where the frozen belong.

    Its like is otherwise, in this order: the adapter of the weight, the same parameter of another layer, a parameter
    with as many dimensions, a group that is empty because all of its parameters are frozen (biases, in the usual
    division by weight decay), group 0.
    """
    index = {id(p): number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
    known = {name: index[id(p)] for name, p in model.named_parameters() if id(p) in index}
    if usual is not None and known.items() <= usual.items() and len(optimizer.param_groups) == 2:
        return dict(usual)
    for module in spec.sites:
        adapter = spec.adapter_names(module)
        if adapter.a in known:
            known[adapter.host] = known[adapter.a]
    by_key = {spec.architecture.locate(name)[0]: number for name, number in known.items()}
    by_dimensions = {len(spec.shapes[name]): number for name, number in known.items()}
    other = next((number for number, group in enumerate(optimizer.param_groups) if not group["params"]), 0)
    return {
        name: known.get(name, by_key.get(spec.architecture.locate(name)[0], by_dimensions.get(len(shape), other)))
        for name, shape in spec.shapes.items()
    }


def rebuild_optimizer(optimizer: Optimizer, model: nn.Module, groups: Groups) -> Optimizer:
    """The optimizer's class with its param groups, over the trainable parameters of `model`, without state."""
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    new_groups: list[dict[str, Any]] = []
    for number, group in enumerate(optimizer.param_groups):
        chosen = [(name, parameter) for name, parameter in trainable if groups[name] == number]
        options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        # An optimizer that was made from named parameters keeps their names.
        params = chosen if "param_names" in group else [parameter for _, parameter in chosen]
        new_groups.append({**options, "params": params})
    return type(optimizer)(new_groups, **options_of(optimizer))


def options_of(optimizer: Optimizer) -> dict[str, Any]:
    """The defaults of an optimizer that its class can be called with."""
    accepted = inspect.signature(type(optimizer).__init__).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values())
    return {key: value for key, value in optimizer.defaults.items() if takes_any or key in accepted}


def begins_with_state(kind: type[Optimizer], options: Mapping[str, Any]) -> bool:
    """Whether an optimizer remembers something of its parameters before its first step, as Adagrad does."""
    try:
        return bool(kind([nn.Parameter(torch.zeros(2, 2))], **options).state)
    except Exception:  # it needs more than a matrix
        return False


def states_without_rule(kind: type[Optimizer], options: Mapping[str, Any], device: torch.device) -> list[str]:
    """What an optimizer remembers of each entry that no rule carries to another shape, found by a step on a matrix."""
    matrix = nn.Parameter(torch.zeros(4, 3, device=device))
    matrix.grad = torch.ones_like(matrix)
    try:
        optimizer = kind([matrix], **options)
        optimizer.step()
    except Exception:  # it needs more than a matrix and its gradient; the transplant itself will judge
        return []
    state = optimizer.state[matrix]
    return sorted(key for key, value in state.items() if has_no_rule(key, value))


def optimizer_names(model: nn.Module, optimizer: Optimizer) -> list[list[str]]:
    """Names of the parameters of each param group, in the order that the optimizer's `state_dict` numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def inherit_groups(lineage: Lineage, groups: Groups) -> dict[str, int]:
    """Param group of every new parameter: that of its kin."""
    return {name: groups[lineage.kin(name)] for name in lineage.origins}
