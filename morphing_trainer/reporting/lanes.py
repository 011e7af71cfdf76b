"""Operations and stages of several runs: a lane for each above the panels, explained at the foot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from morphing_trainer.reporting.canvas import DARK
from morphing_trainer.reporting.marks import Mark, Row, explained, kind_color, place
from morphing_trainer.reporting.run_data import Axis as XAxis
from morphing_trainer.reporting.run_data import RunData
from morphing_trainer.reporting.stages import Band, bands, draw_bands, unnamed

LANE = 0.27  # inches
_MOST_ROWS = 36

Limits = tuple[float, float]


@dataclass(frozen=True)
class Lane:
    """What a run has to show in a lane: its operations, or its stages."""

    run: RunData
    marks: Sequence[Mark] = ()
    stages: Sequence[Band] = ()


def lanes_of(runs: Sequence[RunData], axis: XAxis, unit: float, limits: Limits, end: float) -> list[Lane]:
    """Lanes of all runs that have operations, or more than one stage."""
    found: list[Lane] = []
    for run in runs:
        if run.records:
            places = [x / unit for x in run.places([float(record.step) for record in run.records], axis)]
            found.append(Lane(run, marks=place(run.records, *limits, places, lanes=1)))
        if len(run.stages) > 1:
            last = run.places([max(float(line["step"]) for line in run.lines)], axis)[0] / unit
            edges = [x / unit for x in run.places(list(run.stages.values()), axis)]
            found.append(Lane(run, stages=bands(list(run.stages), edges, last, whole=end)))
    return found


def rows_of(lanes: Sequence[Lane], looks: Mapping[str, tuple[str, str]]) -> list[Row]:
    """What numbers and letters say, run by run."""
    rows: list[Row] = []
    seen = ""
    for lane in lanes:
        own = [*explained(lane.marks), *unnamed(lane.stages)]
        if own and lane.run.name != seen:
            seen = lane.run.name
            rows.append((0, looks[seen][0], seen))
        rows += own
    if len(rows) > _MOST_ROWS:
        left = len(rows) - _MOST_ROWS + 1
        rows = [*rows[: _MOST_ROWS - 1], (0, DARK, f"... {left} more: see each run's own picture")]
    return rows


def draw_lanes(axes: Axes, lanes: Sequence[Lane], limits: Limits, looks: Mapping[str, tuple[str, str]]) -> None:
    """A numbered mark for every operation, on a line in the run's colour; a band for every stage."""
    axes.set_ylim(len(lanes), 0)
    axes.set_yticks([])
    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(bottom=False)
    for number, lane in enumerate(lanes):
        color = looks[lane.run.name][0]
        word = "operations" if lane.marks else "stages"
        at: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "ha": "right"}
        axes.text(-0.008, number + 0.5, word, fontsize=8, color=DARK, **at)
        if lane.stages:
            draw_bands(axes, lane.stages, number + 0.14, number + 0.86, edge=color)
            continue
        axes.axhline(number + 0.5, color=color, linewidth=1.6, alpha=0.7, zorder=1)
        for mark in lane.marks:
            kinds = {kind_color(record) for record in mark.records}
            fill = kinds.pop() if len(kinds) == 1 else "#222222"
            x = limits[0] + sum(mark.span) / 2 * (limits[1] - limits[0])
            box = {"boxstyle": "round,pad=0.18", "facecolor": fill, "edgecolor": fill, "linewidth": 0.8}
            style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "color": "white"}
            axes.text(x, number + 0.5, mark.text, bbox=box, gid="operation", **style)
