"""What the conformance tests share: a model with a history, snapshots of it, and what a lineage predicts."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.optim import Optimizer
from transformers import GPT2LMHeadModel

from morphing_trainer.engine import dressed
from morphing_trainer.lineage import NEWBORN, AdapterChange, AxisMap, ModelSpec, Site, readapt, transplant_weights
from morphing_trainer.lineage.adapters import canonical
from morphing_trainer.operations import ArchitectureOperation, Morph, Operation
from morphing_trainer.operations.components import resolve
from morphing_trainer.planning import operation_rng
from morphing_trainer.schedule import Schedule
from tests.conformance.cases import ADAPTERS, Case
from tests.support import LENGTH, VOCAB, tiny_model

MakeOptimizer = Callable[[Iterable[Any]], Optimizer]


def adamw(parameters: Iterable[Any]) -> Optimizer:
    """Without weight decay, so that what moves was moved by its gradient."""
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)


def batch(number: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (4, LENGTH), generator=torch.Generator().manual_seed(100 + number))


def train(model: Any, optimizer: Optimizer, steps: int, start: int = 0) -> float:
    """Train in the usual way; the last loss."""
    loss = torch.tensor(0.0)
    for number in range(start, start + steps):
        loss = model(input_ids=batch(number), labels=batch(number)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def adapted(model: GPT2LMHeadModel, sites: Mapping[str, tuple[int, float]], rslora: bool = False) -> GPT2LMHeadModel:
    """The model with adapters of these ranks and alphas; a tied head has none of its own."""
    spec = ModelSpec.of(model)
    bare = replace(spec, adapter=canonical({}, LoraConfig(use_rslora=rslora)))
    new = bare.readapted({name: Site(*site) for name, site in sites.items() if name not in heads(model)})
    weights = transplant_weights(readapt(bare, new, AdapterChange(seed=11)), named(model))
    return dressed(new, weights, like=model)


def heads(model: GPT2LMHeadModel) -> tuple[str, ...]:
    """Modules that share their weight with another."""
    return ("lm_head",) if model.config.tie_word_embeddings else ()


@cache
def _made(
    frozen: tuple[str, ...], dtype: torch.dtype, tied: bool, make: MakeOptimizer, steps: int, lora: str
) -> tuple[GPT2LMHeadModel, Optimizer]:
    model = tiny_model(tie_word_embeddings=tied).to(dtype)
    rslora, sites = ADAPTERS[lora]
    if sites:
        model = adapted(model, sites, rslora)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
    spec = ModelSpec.of(model)
    still = spec.hosts.union(*resolve(spec, frozen).values()) if frozen else spec.hosts
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in still)
    optimizer = make([parameter for parameter in model.parameters() if parameter.requires_grad])
    train(model, optimizer, steps)
    return model, optimizer


def with_history(
    frozen: Iterable[str] = (),
    dtype: torch.dtype = torch.float64,
    tied: bool = True,
    make: MakeOptimizer = adamw,
    steps: int = 3,
    lora: str = "",
) -> tuple[GPT2LMHeadModel, Optimizer]:
    """A model far from its initialisation, and an optimizer over its trainable part that has made `steps` steps."""
    return copy.deepcopy(_made(tuple(frozen), dtype, tied, make, steps, lora))


def of(case: Case, **options: Any) -> tuple[GPT2LMHeadModel, Optimizer]:
    return with_history(case.frozen, lora=case.lora, **options)


def parsed(written: Any) -> Operation:
    return Schedule.of([{**written, "max_wait_iters": 0}]).entries[0].operation


def described(case: Case, model: torch.nn.Module, seed: int = 0) -> Morph:
    """The description that `morph` follows for this seed."""
    operation = parsed(case.written)
    assert isinstance(operation, ArchitectureOperation)
    return operation.morph(ModelSpec.of(model), operation_rng(seed, 0))


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=batch(77)).logits


def distance(left: Tensor, right: Tensor) -> float:
    """Largest difference relative to the largest entry."""
    return float((left - right).abs().max() / right.abs().max())


def named(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return dict(model.named_parameters())


def effective(model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights as the model without adapters would have them, each with what PEFT says its adapter adds."""
    found = {
        name.replace(".base_layer", ""): each.detach() for name, each in named(model).items() if ".lora_" not in name
    }
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and f"{name}.weight" in found:
            found[f"{name}.weight"] = found[f"{name}.weight"] + module.get_delta_weight("default").detach()
    return found


def states(model: torch.nn.Module, optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    return {name: optimizer.state.get(parameter, {}) for name, parameter in model.named_parameters()}


def expected(old: Tensor, maps: Iterable[AxisMap], power: int) -> Tensor:
    """`old` gathered by hand, times the gradient factors to the power; entries without ancestor are NaN."""
    for entry in maps:
        rows = []
        for position, source in enumerate(entry.source.tolist()):
            row = old.select(entry.dim, max(source, 0)).clone()
            if entry.grad is not None:
                row *= float(torch.tensor(float(entry.grad[position]) ** power, dtype=torch.float64).to(old.dtype))
            rows.append(row if source != NEWBORN else torch.full_like(row, torch.nan))
        old = torch.stack(rows, entry.dim)
    return old


def everything(model: torch.nn.Module, optimizer: Optimizer | None) -> dict[str, Any]:
    """A deep copy of all that a failing operation must leave alone."""
    return {
        "weights": {name: parameter.detach().clone() for name, parameter in model.named_parameters()},
        "places": {name: parameter.data_ptr() for name, parameter in model.named_parameters()},
        "gradients": {name: copy.deepcopy(parameter.grad) for name, parameter in model.named_parameters()},
        "trained": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "config": model.config.to_dict(),
        "adapters": {name: config.to_dict() for name, config in getattr(model, "peft_config", {}).items()},
        "optimizer": copy.deepcopy(optimizer.state_dict()) if optimizer else None,
        "groups": [[id(p) for p in group["params"]] for group in optimizer.param_groups] if optimizer else None,
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }


def equal(left: Any, right: Any) -> bool:
    """Equal to the bit, through dictionaries and lists."""
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return bool(np.array_equal(left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)
