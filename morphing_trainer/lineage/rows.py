"""Part of a lineage: the origin of some rows of a tensor, for whoever keeps only those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from morphing_trainer.lineage.lineage import NEWBORN, AxisMap, Descent, Newborn, Origin


def restricted(origin: Origin, shape: Sequence[int], rows: range) -> Origin | None:
    """Where `rows` of a tensor come from, so that they can be computed by themselves.

    Args:
        shape: of the whole tensor.
        rows: indices along its first dimension.

    Returns:
        None if they cannot be: random numbers are drawn for a tensor as a whole.
    """
    match origin:
        case Newborn(fill=fill) if not fill.std:
            return replace(origin, shape=(len(rows), *shape[1:]))
        case Descent() if origin.noise is None and not (origin.fill.std and has_newborn_entries(origin)):
            whole = AxisMap(0, torch.arange(shape[0]))
            first = next((entry for entry in origin.maps if entry.dim == 0), whole)
            others = tuple(entry for entry in origin.maps if entry.dim != 0)
            return replace(origin, maps=(_cut(first, rows), *others))
    return None


def has_newborn_entries(origin: Descent) -> bool:
    """Whether some entries of a tensor that descends from another have no ancestor."""
    return any(bool((entry.source == NEWBORN).any()) for entry in origin.maps)


def _cut(entry: AxisMap, rows: range) -> AxisMap:
    def part(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[rows.start : rows.stop]

    return replace(entry, source=entry.source[rows.start : rows.stop], weight=part(entry.weight), grad=part(entry.grad))
