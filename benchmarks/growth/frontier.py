"""What a loss costs from scratch, and what a recipe saves of it. Pure functions of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log
from typing import Any


@dataclass(frozen=True)
class Frontier:
    """Runs from scratch of one seed: (FLOPs, final loss), with more FLOPs a lower loss.

    Between two runs the loss is taken to fall linearly with the logarithm of the FLOPs. Outside of them nothing is
    said.
    """

    points: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, runs: Sequence[tuple[float, float]]) -> Frontier:
        """Of runs in any order; one that a cheaper run has beaten is no part of it.

        Raises:
            ValueError: if fewer than two are left.
        """
        kept: list[tuple[float, float]] = []
        for flops, loss in sorted(runs):
            if not kept or loss < kept[-1][1]:
                kept.append((flops, loss))
        if len(kept) < 2:
            raise ValueError("a frontier needs two runs from scratch, of which the longer one is better")
        return cls(tuple(kept))

    def cost(self, loss: float) -> float | None:
        """FLOPs at which training from scratch comes to `loss`; None for one that no two runs enclose."""
        for (less, worse), (more, better) in pairwise(self.points):
            if better <= loss <= worse:
                share = (worse - loss) / (worse - better)
                return exp(log(less) + share * (log(more) - log(less)))
        return None


@dataclass(frozen=True)
class Saving:
    """What a recipe has come to.

    Attributes:
        losses, flops: of each seed.
        ratios: FLOPs from scratch over those of the recipe, at its own final loss, of the seeds for which that is
            known.
    """

    name: str
    losses: tuple[float, ...]
    flops: tuple[float, ...]
    ratios: tuple[float, ...]


def savings(results: Sequence[Mapping[str, Any]]) -> list[Saving]:
    """Every recipe against the frontier of its own seed, in the order in which they come."""
    frontiers = {
        seed: Frontier.of([(r["flops"], r["loss"]) for r in results if r["scratch"] and r["seed"] == seed])
        for seed in sorted({r["seed"] for r in results})
    }
    found: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        if not result["scratch"]:
            found.setdefault(result["name"], []).append(result)
    savings = []
    for name, runs in found.items():
        costs = [(frontiers[run["seed"]].cost(run["loss"]), run["flops"]) for run in runs]
        ratios = tuple(cost / flops for cost, flops in costs if cost is not None)
        losses = tuple(run["loss"] for run in runs)
        savings.append(Saving(name, losses, tuple(run["flops"] for run in runs), ratios))
    return savings
