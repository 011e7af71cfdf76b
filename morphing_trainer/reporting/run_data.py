"""What there is to draw of a run, and what it can be drawn over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from morphing_trainer.errors import ConfigError
from morphing_trainer.reporting.records import Record
from morphing_trainer.reporting.series import Points

Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Axis:
    """What a picture may run along: its option, the key in the log lines, and the words under the axis."""

    name: str
    key: str
    label: str
    units: tuple[tuple[float, str], ...] = ()
    """(size, name), largest first: the axis is drawn in the largest that is no larger than its end."""

    def unit(self, end: float) -> tuple[float, str]:
        """The unit for an axis that ends at `end`, and its label."""
        for size, name in self.units:
            if end >= 2 * size or (size, name) == self.units[-1]:
                return size, f"{self.label} ({name})"
        return 1.0, self.label


AXES = {
    axis.name: axis
    for axis in (
        Axis("steps", "step", "optimizer step"),
        Axis("tokens", "tokens", "training tokens"),
        Axis("seconds", "seconds", "training time", ((3600, "hours"), (60, "minutes"), (1, "seconds"))),
        Axis(
            "flops",
            "total_flos",
            "floating-point operations",
            tuple((10.0**power, rf"$\times\,10^{{{power}}}$") for power in (24, 21, 18, 15, 12, 9, 6)),
        ),
    )
}


@dataclass(frozen=True)
class RunData:
    """One run.

    Attributes:
        name: to tell it by.
        lines: its log lines, those that lead to the run as it is.
        records: its operations.
        stages: name -> optimizer step at which the stage began; one entry for a run without a plan.
        timing: part -> seconds.
    """

    name: str
    lines: Lines
    records: Sequence[Record] = ()
    stages: Mapping[str, float] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=dict)

    def points(self, key: str, axis: Axis) -> Points:
        """(x, value) of every line that has `key`.

        Raises:
            ConfigError: if the log lines do not say where they are on this axis.
        """
        found = [line for line in self.lines if is_number(line.get(key))]
        places = self.places([float(line["step"]) for line in found], axis)
        exact = [
            float(line[axis.key]) if is_number(line.get(axis.key)) else at
            for line, at in zip(found, places, strict=True)
        ]
        return [(x, float(line[key])) for x, line in zip(exact, found, strict=True)]

    def places(self, steps: Sequence[float], axis: Axis) -> list[float]:
        """Where optimizer steps lie on an axis, between the log lines that say it.

        Raises:
            ConfigError: if none does.
        """
        if axis.name == "steps":
            return list(steps)
        known = {float(line["step"]): float(line[axis.key]) for line in self.lines if is_number(line.get(axis.key))}
        known.pop(0.0, None)
        if not known:
            raise ConfigError(
                f"{self.name}: its log lines have no {axis.key!r}, so it cannot be drawn over {axis.name}: an older "
                "version of this library wrote them, or nothing has been logged yet. --x steps works."
            )
        return [float(x) for x in np.interp(steps, [0.0, *known], [0.0, *known.values()])]

    def keys(self, *, ending: str = "", beginning: str = "") -> list[str]:
        """Keys of the log with such names and a number behind them, in alphabetical order."""
        found = {key for line in self.lines for key, value in line.items() if is_number(value)}
        return sorted(key for key in found if key.endswith(ending) and key.startswith(beginning))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
