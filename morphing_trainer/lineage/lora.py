"""The rule for adapters: from the adapters of one description to those of another."""

from __future__ import annotations

import torch

from morphing_trainer.architectures import BASE
from morphing_trainer.lineage.adapters import drawn_std
from morphing_trainer.lineage.lineage import (
    NEWBORN,
    AxisMap,
    Descent,
    Fill,
    Lineage,
    Merged,
    Newborn,
    Origin,
    Product,
    Truncated,
)
from morphing_trainer.lineage.sites import AdapterChange
from morphing_trainer.lineage.spec import ModelSpec


def readapt(spec: ModelSpec, new: ModelSpec, how: AdapterChange) -> Lineage:
    """Lineage of other adapters on the same model.

    - A larger rank (exact): the zeroed matrix is scaled by s / s' and gets zeros, the drawn one gets random rows.
    - A smaller rank: the product's best approximation; the rest is merged or dropped.
    - No adapter any more, or a restart: the product is merged. A new adapter: one matrix drawn, the other zero.

    Args:
        spec, new: the model before and after; they differ in their adapters only.
    """
    origins: dict[str, Origin] = {}
    for number, name in enumerate(new.shapes):
        if adapter := new.adapter_at(name):
            origins[name] = _matrix(name, adapter.host, spec, new, how, Fill(seed=how.seed + number))
        else:
            origins[name] = _base(name, spec, new, how)
    return Lineage(origins)


def _base(name: str, spec: ModelSpec, new: ModelSpec, how: AdapterChange) -> Origin:
    """A parameter of the model itself, under whatever name."""
    before = spec.name_now(new.name_before(name))
    if before not in spec.hosts:
        return Descent(before)
    module = _module(before)
    rank, old = new.sites[module].rank if module in new.sites else 0, spec.sites[module].rank
    if rank and not how.restart and (rank >= old or how.residual == "drop"):
        return Descent(before)
    axes = spec.architecture.tensors[spec.architecture.locate(before)[0]]
    beyond = 0 if how.restart else rank
    return Merged(before, _product(spec, module), transposed=axes[0].role == "reads", beyond=beyond)


def _matrix(name: str, host: str, spec: ModelSpec, new: ModelSpec, how: AdapterChange, fill: Fill) -> Origin:
    """A matrix of an adapter."""
    module = _module(host)
    adapter = new.adapter_names(module)
    is_drawn = name == adapter.drawn
    axes = spec.architecture.tensors[spec.architecture.locate(name)[0]]
    dim = next(dim for dim, axis in enumerate(axes) if axis.name == "rank")
    shape = tuple(new.shapes[name])
    fan_in = new.shapes[adapter.a][1]
    std = drawn_std(module in new.architecture.embeddings, fan_in) if is_drawn else 0.0
    drawn = Fill(std, fill.seed)
    if module not in spec.sites:
        return Newborn(f"{module}.weight", drawn, shape, wide=True)
    rank, old = new.sites[module].rank, spec.sites[module].rank
    if how.restart:
        return Newborn(name, drawn, shape)
    ratio = spec.scaling(module) / new.scaling(module)
    if rank < old:
        return Truncated(name, _product(spec, module), rank, new.scaling(module), adapter.drawn)
    # The gradient of either matrix has the scaling in it, and the other matrix.
    weight = 1.0 if is_drawn or not how.compensate else ratio
    grad = (1.0 if how.compensate else 1.0 / ratio) if is_drawn else 1.0 / ratio
    if rank == old and weight == grad == 1.0:
        return Descent(name)
    source = torch.cat([torch.arange(old), torch.full((rank - old,), NEWBORN)])
    factors = [torch.full((rank,), factor, dtype=torch.float64) for factor in (weight, grad)]
    return Descent(name, (AxisMap(dim, source, *(None if bool((f == 1).all()) else f for f in factors)),), fill=drawn)


def _product(spec: ModelSpec, module: str) -> Product:
    adapter = spec.adapter_names(module)
    return Product(adapter.a, adapter.b, spec.scaling(module))


def _module(host: str) -> str:
    return host.rpartition(f"{BASE}.")[0]
