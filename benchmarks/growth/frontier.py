"""What a loss costs from scratch, and what a recipe saves of it. Pure functions of results."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, inf, log
from typing import Any


@dataclass(frozen=True)
class Frontier:
    """Runs from scratch of one seed: (FLOPs, final loss), with more FLOPs a lower loss; or seconds instead of FLOPs.

    Between two runs the loss is taken to fall linearly with the logarithm of the FLOPs. Outside of them nothing is
    said but on which side.
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

    def enclosed(self, loss: float) -> tuple[float, float]:
        """FLOPs between which training from scratch comes to `loss`: twice the same, or from or up to an end of it."""
        cost = self.cost(loss)
        if cost is not None:
            return cost, cost
        return (self.points[-1][0], inf) if loss < self.points[-1][1] else (0.0, self.points[0][0])

    def left_out(self) -> list[float]:
        """For every run between two others: FLOPs that the line without it gives for its loss, over those it took."""
        without = [(run, Frontier(tuple(other for other in self.points if other != run))) for run in self.points[1:-1]]
        return [line.enclosed(loss)[0] / flops for (flops, loss), line in without]


@dataclass(frozen=True)
class Saving:
    """What a recipe has come to, in each of its seeds.

    Attributes:
        losses: final ones.
        costs: FLOPs, or whatever `savings` was asked for.
        bounds: between which the cost from scratch over that of the recipe lies, at its own final loss: twice the same
            number where two runs from scratch enclose that loss, (0, inf) for a seed that has no frontier.
    """

    name: str
    seeds: tuple[int, ...]
    losses: tuple[float, ...]
    costs: tuple[float, ...]
    bounds: tuple[tuple[float, float], ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Of the seeds for which it is known exactly."""
        return tuple(least for least, most in self.bounds if least == most)


def frontiers(results: Sequence[Mapping[str, Any]], cost: str = "flops") -> dict[int, Frontier]:
    """Seed -> its frontier, of the seeds that have runs enough; `cost` as for `savings`."""
    found: dict[int, Frontier] = {}
    for seed in sorted({result["seed"] for result in results}):
        with contextlib.suppress(ValueError):  # too few runs from scratch yet
            scratch = [(r[cost], r["loss"]) for r in results if r["scratch"] and r["seed"] == seed]
            found[seed] = Frontier.of(scratch)
    return found


def savings(results: Sequence[Mapping[str, Any]], cost: str = "flops") -> list[Saving]:
    """Every recipe against the frontier of its own seed, in the order in which they come.

    Args:
        cost: key of what is spent: "flops", or "seconds".
    """
    lines = frontiers(results, cost)
    found: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        if not result["scratch"]:
            found.setdefault(result["name"], []).append(result)
    savings = []
    for name, runs in found.items():
        bounds = []
        for run in runs:
            frontier = lines.get(run["seed"])
            least, most = frontier.enclosed(run["loss"]) if frontier else (0.0, inf)
            bounds.append((least / run[cost], most / run[cost]))
        seeds, losses, costs = (tuple(run[key] for run in runs) for key in ("seed", "loss", cost))
        savings.append(Saving(name, seeds, losses, costs, tuple(bounds)))
    return savings
