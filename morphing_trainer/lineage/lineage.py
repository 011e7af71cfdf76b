"""Lineage: for every tensor of a new model, where it comes from.

A descent names the ancestor, the old index behind each new index along every axis that changed, and the
factors by which weight and gradient scale. Everything that belongs to a parameter follows it: the weight,
the optimizer's moments, the param group, the frozen flag.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
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
    """A parameter without ancestor: `fill`, on the device of the old parameter `like` and in its param group.

    Shape and dtype are those of `like` as well, unless `shape` is given; `wide` asks for float32 at least.
    """

    like: str
    fill: Fill = Fill()
    shape: tuple[int, ...] | None = None
    wide: bool = False


@dataclass(frozen=True)
class Product:
    """What a LoRA adapter adds to its weight: scale * B A, (out, in).

    Attributes:
        a, b: names of the old matrices (rank, in) and (out, rank).
        scale: alpha / rank, or alpha / sqrt(rank).
    """

    a: str
    b: str
    scale: float


@dataclass(frozen=True)
class Merged:
    """An old weight plus a product, computed in float32 at least. Its moments start newborn.

    Attributes:
        ancestor: name of the old weight.
        product: what is added.
        transposed: the weight is stored (in, out).
        beyond: add only what the best approximation of the product with this rank leaves over.
    """

    ancestor: str
    product: Product
    transposed: bool
    beyond: int = 0


@dataclass(frozen=True)
class Truncated:
    """One matrix of the best approximation of `product` with a smaller rank (Eckart-Young). Its moments start newborn.

    Attributes:
        ancestor: name of the old matrix.
        rank: the new rank.
        scale: the new scale.
        drawn: which of the product's two names is the one that started from a random draw. It gets orthogonal vectors
            of the old one's mean length, and the other one the rest, which may be zero.
    """

    ancestor: str
    product: Product
    rank: int
    scale: float
    drawn: str


Origin = Descent | Newborn | Merged | Truncated


@dataclass(frozen=True)
class Lineage:
    """New parameter name -> where it comes from, in the order of the new model."""

    origins: Mapping[str, Origin]

    def __post_init__(self) -> None:
        object.__setattr__(self, "origins", MappingProxyType(dict(self.origins)))

    @classmethod
    def unchanged(cls, names: Iterable[str]) -> Lineage:
        return cls({name: Descent(name) for name in names})

    def ancestor(self, name: str) -> str | None:
        """Name of the old parameter behind `name`, None for a newborn."""
        origin = self.origins[name]
        return None if isinstance(origin, Newborn) else origin.ancestor

    def kin(self, name: str) -> str:
        """Name of the old parameter whose param group `name` joins."""
        origin = self.origins[name]
        return origin.like if isinstance(origin, Newborn) else origin.ancestor

    @property
    def resizes(self) -> bool:
        """Whether tensors change shape or scale, so that the optimizer's memory has to follow by rule."""
        return any(isinstance(origin, Descent) and bool(origin.maps) for origin in self.origins.values())

    def inherit(self, names: frozenset[str]) -> frozenset[str]:
        """The new names whose ancestors are in `names` (for flags such as frozen).

        A block that starts as an identity has learnt nothing yet, so a newborn or silent parameter inherits nothing.
        """
        return frozenset(
            name
            for name, origin in self.origins.items()
            if not isinstance(origin, Newborn)
            and not (isinstance(origin, Descent) and origin.silent)
            and origin.ancestor in names
        )
