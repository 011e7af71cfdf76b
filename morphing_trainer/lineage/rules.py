"""The two generic rules that lineages are made of: another sequence of layers, another set of units along an axis."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from morphing_trainer.lineage.lineage import NEWBORN, AxisMap, Descent, Fill, Lineage, Newborn, Origin
from morphing_trainer.lineage.spec import ModelSpec


@dataclass(frozen=True, eq=False)
class Units:
    """The new units along an axis.

    Attributes:
        source: (new,) int64, the old unit behind each new one, or `NEWBORN`.
        share: (new,) float64, the part of the old unit's output that each copy carries. The shares of one old unit add
            up to 1, so that readers, scaled by them, see the same sum.
        noise: added to the second and later copies where they are written.
    """

    source: Tensor
    share: Tensor
    noise: Fill | None = None


def resize(spec: ModelSpec, new: ModelSpec, axis: str, units: Sequence[Units], fill: Fill) -> Lineage:
    """Lineage of giving every layer other units along `axis` (Net2WiderNet, Chen et al. 2016, with free shares).

    Writers gather the units; a copy's gradient is its share of the old unit's. Readers gather the units and scale the
    weight by the share; their gradient is the old unit's. Newborn units are written as `fill` says and read as zero, so
    the function stays.

    Args:
        spec, new: the model before and after; they differ in the size of `axis` only.
        units: the new units, one entry per layer: every layer draws its own.
        fill: initial weights of newborn units where they are written.
    """
    origins: dict[str, Origin] = {}
    for name in new.shapes:
        key, layer = spec.architecture.locate(name)
        axes = spec.architecture.tensors[key]
        dims = [dim for dim, entry in enumerate(axes) if entry.name == axis]
        if not dims or layer is None:
            origins[name] = Descent(name)
            continue
        chosen = units[layer]
        maps = []
        for dim in dims:
            source, share = _fused(chosen, axes[dim].parts, spec.shapes[name][dim])
            if axes[dim].role == "writes":
                maps.append(AxisMap(dim, source, grad=share))
            else:
                maps.append(AxisMap(dim, source, weight=share))
        # An adapter adds to its weight: what is newborn there is drawn, or disturbed, once.
        is_matrix = len(axes) > 1 and spec.adapter_at(name) is None
        is_written_matrix = is_matrix and any(axes[dim].role == "writes" for dim in dims)
        origins[name] = Descent(
            name,
            tuple(maps),
            fill=fill if is_written_matrix else Fill(),
            noise=chosen.noise if is_written_matrix else None,
        )
    return Lineage(origins)


def _fused(units: Units, parts: int, old_size: int) -> tuple[Tensor, Tensor]:
    """Source and share along a dimension of `parts` equal blocks (q|k|v), each of which holds the axis once."""
    if parts == 1:
        return units.source, units.share
    block = old_size // parts
    sources = [torch.where(units.source == NEWBORN, units.source, units.source + part * block) for part in range(parts)]
    return torch.cat(sources), units.share.repeat(parts)


def regather(spec: ModelSpec, new: ModelSpec, sources: Sequence[int], identity: Collection[int] = ()) -> Lineage:
    """Lineage of another sequence of layers: new layer i is a copy of old layer `sources[i]`.

    Layers in `identity` write zeros to the residual stream. Only those zeros get a gradient at the first step, so
    nothing in such a layer carries moments: copied ones would move weights that are silent.
    """
    architecture = spec.architecture
    origins: dict[str, Origin] = {}
    for name in new.shapes:
        key, layer = architecture.locate(name)
        if layer is None:
            origins[name] = Descent(name)
            continue
        ancestor = key.replace("{layer}", str(sources[layer]))
        if layer not in identity:
            origins[name] = Descent(ancestor)
        elif _writes_residual(spec, key):
            origins[name] = Newborn(like=ancestor)
        else:
            origins[name] = Descent(ancestor, moments="newborn", silent=True)
    return Lineage(origins)


def _writes_residual(spec: ModelSpec, key: str) -> bool:
    """Whether the parameter must be zero for its block to add nothing to the residual stream."""
    adapter = spec.architecture.adapters.get(key)
    host = key if adapter is None else adapter.host
    is_written = spec.name_before(host) in spec.architecture.residual_writers
    return is_written and (adapter is None or key == adapter.zeroed)
