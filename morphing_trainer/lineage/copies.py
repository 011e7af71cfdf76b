"""Which units a wider axis copies, and how the copies of one share its output (Net2WiderNet, Chen et al. 2016)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from morphing_trainer.lineage.lineage import NEWBORN
from morphing_trainer.lineage.rules import Units

Split = Literal["uneven", "even", "newborn"]


def widened(old: int, new: int, split: Split, rng: torch.Generator) -> Units:
    """The units of an axis that grows from `old` to `new`: copies with unlike or equal shares, or newborn ones."""
    if split == "newborn":
        source = torch.cat([torch.arange(old), torch.full((new - old,), NEWBORN)])
        return Units(source, torch.ones(new, dtype=torch.float64))
    source = _balanced(old, new, rng)
    if split == "even":
        return Units(source, 1.0 / torch.bincount(source, minlength=old)[source].double())
    return Units(source, _uneven(source, old, rng))


def _balanced(old: int, new: int, rng: torch.Generator) -> Tensor:
    """(new,) sources: the old units, then copies drawn so that no unit has two more copies than another."""
    rounds = [torch.randperm(old, generator=rng) for _ in range(-(-(new - old) // old))]
    return torch.cat([torch.arange(old), *rounds])[:new]


def _uneven(source: Tensor, old: int, rng: torch.Generator) -> Tensor:
    """(len(source),) shares, spread over 0.8 ... 1.2 with jitter: no two copies of a unit get nearly the same.

    The jitter is at most an eighth of the distance between neighbours, so that it never brings two together.
    """
    copies = torch.bincount(source, minlength=old)[source]
    rank = torch.zeros_like(source)
    for position in range(0, len(source), old):  # the k-th round of `_balanced` holds every unit's k-th copy
        rank[position : position + old] = position // old
    spread = 2.0 * rank / (copies - 1).clamp(min=1) - 1.0
    # Which copy gets the larger part is drawn per unit; otherwise originals would always shrink more.
    sign = torch.randint(2, (old,), generator=rng)[source] * 2.0 - 1.0
    jitter = (torch.rand(len(source), generator=rng, dtype=torch.float64) * 0.1 - 0.05) / (copies - 1).clamp(min=1)
    weight = torch.where(copies > 1, 1.0 + 0.2 * sign * spread.double() + jitter, 1.0)
    total = torch.zeros(old, dtype=torch.float64).index_add_(0, source, weight)
    return weight / total[source]
