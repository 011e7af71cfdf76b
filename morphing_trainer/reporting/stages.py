"""The stages of a training plan in a picture: coloured bands with their names, or letters where a name does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from morphing_trainer.reporting.canvas import DARK, GREY, LEFT, RIGHT, WIDTH
from morphing_trainer.reporting.marks import Row

STRIP = 0.26  # inches
_INCHES = (WIDTH - LEFT - RIGHT) / 1.03
_COLORS = ("#D9E3EC", "#EFE6D2")


class Band(NamedTuple):
    """A stage from `low` to `high` on the x axis; `label` is its name, or a letter that stands for it."""

    name: str
    low: float
    high: float
    label: str


def bands(names: Sequence[str], edges: Sequence[float], end: float, whole: float) -> list[Band]:
    """The bands of stages that begin at `edges`, the last one until `end`, on an axis of length `whole`."""
    found = []
    for i, (name, low, high) in enumerate(zip(names, edges, [*edges[1:], end], strict=True)):
        fits = 0.085 * len(name) + 0.1 <= (high - low) / whole * _INCHES
        found.append(Band(name, low, high, name if fits else f"({chr(97 + i % 26)})"))
    return found


def unnamed(stages: Sequence[Band]) -> list[Row]:
    """At the foot: what the letters stand for."""
    return [(0, DARK, f"{band.label} stage {band.name}") for band in stages if band.label != band.name]


def draw_bands(axes: Axes, stages: Sequence[Band], low: float, high: float, edge: str = "none") -> None:
    """The bands between `low` and `high` on the y axis, labelled. Letters of bands too thin for them overlap not: they
    are left out where the one before is too near."""
    span = abs(axes.get_xlim()[1] - axes.get_xlim()[0]) or 1.0
    taken = -1e30
    for i, band in enumerate(stages):
        axes.fill_between([band.low, band.high], low, high, color=_COLORS[i % 2], linewidth=0, gid="stage")
        middle, width = (band.low + band.high) / 2, (0.085 * len(band.label) + 0.02) / _INCHES * span
        if middle - width / 2 < taken:
            continue
        taken = middle + width / 2
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8.5, "color": DARK, "parse_math": False}
        axes.text(middle, (low + high) / 2, band.label, gid="stage label", **style)
    if edge != "none" and stages:
        axes.plot([stages[0].low, stages[-1].high], [max(low, high)] * 2, color=edge, linewidth=1.6)


def draw_stages(axes: Sequence[Axes], stages: Sequence[Band]) -> None:
    """The first panel becomes a strip of bands; through the others go lines where a stage begins."""
    strip = axes[0]
    strip.set_ylim(0, 1)
    strip.set_yticks([])
    strip.grid(False)
    strip.spines[["left", "bottom"]].set_visible(False)
    strip.tick_params(bottom=False)
    strip.set_ylabel("stage", rotation=0, ha="right", va="center", fontsize=9, color=DARK)
    draw_bands(strip, stages, 0, 1)
    for band in stages[1:]:
        for each in axes[1:]:
            each.axvline(band.low, color=GREY, linewidth=1.1, linestyle=":", gid="stage")
