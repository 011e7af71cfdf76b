"""Runs against each other: their losses where they have come equally far, and which reached a loss first. No tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from morphing_trainer.errors import ConfigError
from morphing_trainer.reporting.run_data import AXES, RunData
from morphing_trainer.reporting.series import SMOOTH_FROM, Points, smoothed

TRAINING = "loss"


@dataclass(frozen=True)
class Crossing:
    """Where a run reached the target; `from_start`: its first loss was there already. `ratio`: to the first run."""

    x: float
    from_start: bool = False
    ratio: float | None = None


@dataclass(frozen=True)
class Entrant:
    """A run.

    Attributes:
        points: of its loss, by axis.
        ends: how far it has come, by axis.
        reached: where its loss came down to the target, by axis.
        parameters: of its model as it is.
        operations: where they lie, by axis.
    """

    name: str
    points: Mapping[str, Points]
    ends: Mapping[str, float]
    reached: Mapping[str, Crossing] = field(default_factory=dict)
    parameters: int | None = None
    operations: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def losses(self) -> list[float]:
        return [value for _, value in next(iter(self.points.values()), []) if math.isfinite(value)]

    @property
    def best(self) -> float | None:
        return min(self.losses, default=None)

    def at(self, axis: str, x: float) -> float | None:
        """The loss at `x`, between two that were measured; None beyond them."""
        known = {place: value for place, value in self.points.get(axis, []) if math.isfinite(value)}
        places = sorted(known)  # of several at one place the last one counts: before and after an operation
        if not places or not places[0] <= x <= places[-1]:
            return None
        return float(np.interp(x, places, [known[place] for place in places]))


@dataclass(frozen=True)
class Contest:
    """All of it.

    Attributes:
        loss: key in the log lines.
        target: the loss to reach, None if the runs have logged none that two of them can be held against.
        equal: by axis, how far all have come for certain; none where they share nothing.
        first: by axis, the runs that reached the target first.
    """

    entrants: Sequence[Entrant]
    axes: Sequence[str]
    loss: str
    target: float | None
    equal: Mapping[str, float]
    first: Mapping[str, Sequence[str]]
    remarks: Sequence[str] = ()

    def had(self, axis: str) -> list[str]:
        """The runs whose first loss was at the target already: how much earlier they reached it is not known."""
        return [each.name for each in self.entrants if axis in each.reached and each.reached[axis].from_start]

    @property
    def words(self) -> str:
        """What loss it is, in words."""
        if self.loss == TRAINING:
            return "training loss"
        return f"evaluation {self.loss.removeprefix('eval_').replace('_', ' ')}"


def contest(
    runs: Sequence[RunData],
    axes: Sequence[str],
    loss: str,
    target: float | None = None,
    *,
    sizes: Mapping[str, int | None] | None = None,
    remarks: Sequence[str] = (),
) -> Contest:
    """Hold runs against each other.

    Args:
        axes: names of `AXES`.
        loss: key in the log lines.
        target: default: the lowest loss that all have reached.
        sizes: name of a run -> parameters of its model.
        remarks: what else there is to say.
    """
    said = list(remarks)
    found = [_entrant(run, axes, loss, (sizes or {}).get(run.name), said) for run in runs]
    if target is None:
        lowest = [entrant.best for entrant in found if entrant.best is not None]
        target = max(lowest) if len(lowest) > 1 else None
    equal = {axis: x for axis in axes if (x := _equal(found, axis)) is not None}
    found = [_crossed(entrant, target) for entrant in found]
    first: dict[str, list[str]] = {}
    for axis in axes:
        places = {entrant.name: entrant.reached[axis].x for entrant in found if axis in entrant.reached}
        if len(places) > 1:
            first[axis] = [name for name, x in places.items() if x == min(places.values())]
    return Contest([_rated(entrant, found) for entrant in found], list(axes), loss, target, equal, first, said)


def _entrant(run: RunData, axes: Sequence[str], loss: str, parameters: int | None, said: list[str]) -> Entrant:
    points: dict[str, Points] = {}
    ends: dict[str, float] = {}
    operations: dict[str, Sequence[float]] = {}
    unknown: list[str] = []
    last = float(run.lines[-1]["step"])
    for name in axes:
        try:
            there = run.points(loss, AXES[name])
            ends[name] = run.places([last], AXES[name])[0]
            operations[name] = run.places([float(record.step) for record in run.records], AXES[name])
        except ConfigError:
            unknown.append(AXES[name].label)
            continue
        if loss == TRAINING and len(there) >= SMOOTH_FROM:
            there = list(zip(*smoothed(there), strict=True))
        if there:
            points[name] = there
    if unknown:
        said.append(f"{run.name}: its log lines do not tell {', '.join(unknown)}")
    if not points:
        none = "training loss" if loss == TRAINING else "evaluation; --loss training compares all runs"
        said.append(f"{run.name}: has logged no {none}")
    return Entrant(run.name, points, ends, {}, parameters, operations)


def _equal(entrants: Sequence[Entrant], axis: str) -> float | None:
    """How far along the axis all have a loss; None if some begin only beyond."""
    spans = [[x for x, y in entrant.points[axis] if math.isfinite(y)] for entrant in entrants if axis in entrant.points]
    spans = [xs for xs in spans if xs]
    if len(spans) < 2:
        return None
    end = min(max(xs) for xs in spans)
    return end if max(min(xs) for xs in spans) <= end else None


def crossing(points: Points, target: float) -> Crossing | None:
    """Where a loss first comes down to `target`: between two points as a straight line goes."""
    before: tuple[float, float] | None = None
    for x, value in points:
        if not math.isfinite(value):
            continue
        if value <= target:
            if before is None:
                return Crossing(x, from_start=True)
            (x0, y0) = before
            return Crossing(x0 + (x - x0) * (y0 - target) / (y0 - value))
        before = x, value
    return None


def _crossed(entrant: Entrant, target: float | None) -> Entrant:
    if target is None:
        return entrant
    found = {axis: there for axis, points in entrant.points.items() if (there := crossing(points, target))}
    return replace(entrant, reached=found)


def _rated(entrant: Entrant, all_of_them: Sequence[Entrant]) -> Entrant:
    rated: dict[str, Crossing] = {}
    for axis, there in entrant.reached.items():
        least = min(other.reached[axis].x for other in all_of_them if axis in other.reached)
        rated[axis] = Crossing(there.x, there.from_start, there.x / least if least > 0 else None)
    return replace(entrant, reached=rated)


def to_dict(found: Contest) -> dict[str, Any]:
    """Plain data, for machines."""
    runs = [
        {
            "run": entrant.name,
            "parameters": entrant.parameters,
            "ends": dict(entrant.ends),
            "last": entrant.losses[-1] if entrant.losses else None,
            "best": entrant.best,
            "loss_at_equal": {axis: entrant.at(axis, x) for axis, x in found.equal.items()},
            "reached": {axis: vars(there) for axis, there in entrant.reached.items()},
        }
        for entrant in found.entrants
    ]
    return {
        "loss": found.loss,
        "target": found.target,
        "equal": dict(found.equal),
        "first": {axis: list(names) for axis, names in found.first.items()},
        "runs": runs,
        "remarks": list(found.remarks),
    }
