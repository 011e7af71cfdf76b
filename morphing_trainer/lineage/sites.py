"""Adapters in numbers: where there is one, how large, and how they are to change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple


class Site(NamedTuple):
    """The adapter of one module: its rank and alpha."""

    rank: int
    alpha: float

    def scaling(self, rslora: bool) -> float:
        """The factor s of the product B A: alpha / rank, with rsLoRA (Kalajdzievski 2023) alpha / sqrt(rank)."""
        return float(self.alpha / self.rank**0.5 if rslora else self.alpha / self.rank)


@dataclass(frozen=True)
class AdapterChange:
    """How adapters change.

    Attributes:
        seed: of the random draws.
        residual: what becomes of what a smaller rank cannot hold: it goes into the weight, or is dropped.
        restart: all adapters are merged and start anew, those whose rank stays too.
        compensate: a new scaling is made up for in the matrices, so that the function stays.
    """

    seed: int
    residual: Literal["merge", "drop"] = "merge"
    restart: bool = False
    compensate: bool = True
