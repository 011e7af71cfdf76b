"""Lineage: for every tensor of a new model, where it comes from.

A descent names the ancestor, the old index behind each new index along every axis that changed, and the
factors by which weight and gradient scale. Everything that belongs to a parameter follows it: the weight,
the optimizer's moments, the param group, the frozen flag.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from torch import Tensor

NEWBORN = -1
"""Source index of an entry that has no ancestor."""


@dataclass(frozen=True)
class Fill:
    """Values of newborn entries: normal with this standard deviation (0 gives zeros), drawn from `seed`."""

    std: float = 0.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class AxisMap:
    """One dimension of a descendant.

    Attributes:
        dim: the dimension.
        source: (new size,) int64, the old index behind each new one, or `NEWBORN`.
        weight: (new size,) float64 factors of the weight, None for 1.
        grad: (new size,) float64 factors of the gradient, None for 1.
    """

    dim: int
    source: Tensor
    weight: Tensor | None = None
    grad: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Descent:
    """A parameter that descends from an old one.

    Attributes:
        ancestor: name of the old parameter.
        maps: the dimensions that changed; none for an unchanged tensor, which is moved and not copied.
        moments: `carried` scales the optimizer's moments by the gradient factors; `newborn` starts them (and the
            optimizer's `step`) afresh, for parameters that had none or whose gradient starts at zero.
        silent: the first gradient is exactly zero, whatever the ancestor's was.
        fill: values of newborn entries.
        noise: relative to the tensor's standard deviation, added to entries that are second and later copies.
    """

    ancestor: str
    maps: tuple[AxisMap, ...] = ()
    moments: Literal["carried", "newborn"] = "carried"
    silent: bool = False
    fill: Fill = Fill()
    noise: Fill | None = None


@dataclass(frozen=True)
class Newborn:
    """A parameter without ancestor: `fill` in the shape, dtype and device of the old parameter `like`."""

    like: str
    fill: Fill = Fill()


@dataclass(frozen=True)
class Lineage:
    """New parameter name -> where it comes from, in the order of the new model."""

    origins: Mapping[str, Descent | Newborn]

    def __post_init__(self) -> None:
        object.__setattr__(self, "origins", MappingProxyType(dict(self.origins)))

    @classmethod
    def unchanged(cls, names: Iterable[str]) -> Lineage:
        return cls({name: Descent(name) for name in names})

    def ancestor(self, name: str) -> str | None:
        """Name of the old parameter behind `name`, None for a newborn."""
        origin = self.origins[name]
        return origin.ancestor if isinstance(origin, Descent) else None

    def inherit(self, names: frozenset[str]) -> frozenset[str]:
        """The new names whose ancestors are in `names` (for flags such as frozen).

        A block that starts as an identity has learnt nothing yet, so a newborn or silent parameter inherits nothing.
        """
        return frozenset(
            name
            for name, origin in self.origins.items()
            if isinstance(origin, Descent) and not origin.silent and origin.ancestor in names
        )
