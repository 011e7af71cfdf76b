"""Several runs in one picture, and what lies between them: the difference to the longest run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from morphing_trainer.reporting.canvas import (
    BLACK,
    BLUE,
    DARK,
    GREEN,
    LEFT,
    ORANGE,
    PINK,
    RED,
    RIGHT,
    ROW,
    SKY,
    WIDTH,
    shorten,
    stack,
    title,
)
from morphing_trainer.reporting.course import TITLE, finish, note, scaled
from morphing_trainer.reporting.lanes import LANE, draw_lanes, lanes_of, rows_of
from morphing_trainer.reporting.marks import explain, foot_height
from morphing_trainer.reporting.panels import dots, draw_curve, log_scale, mark_broken, rate_axis, share_axis
from morphing_trainer.reporting.run_data import Axis as XAxis
from morphing_trainer.reporting.run_data import RunData
from morphing_trainer.reporting.series import SMOOTH_FROM, Points, finite, is_loss, smoothed

_LOSS, _SMALL, _DIFFERENCE = 2.6, 1.35, 1.7  # inches
_COLORS = (BLUE, ORANGE, GREEN, RED, PINK, SKY, BLACK)
_STYLES = ("-", "--", ":")
_MOST_ROWS = 36

Curves = Mapping[str, Points]
"""Run -> points."""


def look(index: int) -> tuple[str, str]:
    """Colour and line style of a run, different for the first 21."""
    return _COLORS[index % len(_COLORS)], _STYLES[index // len(_COLORS) % len(_STYLES)]


def difference(run: Points, reference: Points) -> Points:
    """(x, run - reference) at the run's x, the reference interpolated; only where both have finite values around x.

    Of several values of the reference at one x (before and after an operation), the last one counts.
    """
    known = {x: value for x, value in reference if math.isfinite(value)}
    if not known:
        return []
    xs = np.array(sorted(known))
    values = np.array([known[x] for x in xs])
    inside = [(x, value) for x, value in run if xs[0] <= x <= xs[-1] and math.isfinite(value)]
    return [(x, value - float(np.interp(x, xs, values))) for x, value in inside]


def longest(runs: Sequence[RunData], axis: XAxis) -> RunData:
    """The run that reaches furthest along the axis; of equals the one whose record begins earliest, then the first."""

    def reach(run: RunData) -> tuple[float, float]:
        places = [x for x, _ in _reach(run, axis)]
        return max(places), -min(places)

    return max(runs, key=reach)


def _reach(run: RunData, axis: XAxis) -> Points:
    steps = [float(line["step"]) for line in run.lines]
    return [(x, 0.0) for x in run.places(steps, axis)] or [(0.0, 0.0)]


def comparison_figure(runs: Sequence[RunData], axis: XAxis) -> Figure:
    """The picture of several runs over one axis.

    Raises:
        ConfigError: if a run's log lines do not say where they are on this axis.
    """
    base = longest(runs, axis)
    end = max(x for run in runs for x, _ in _reach(run, axis)) or 1.0
    unit, label = axis.unit(end)
    end /= unit
    limits = (-0.015 * end, 1.015 * end)

    def curves(key: str) -> dict[str, Points]:
        found = {run.name: scaled(run.points(key, axis), unit) for run in runs}
        return {name: points for name, points in found.items() if points}

    train, rate = curves("loss"), curves("learning_rate")
    validation = curves(loss_key(runs))
    accuracy_key = _common(runs, "accuracy")
    accuracy = curves(accuracy_key)
    differences = {"validation loss": _gaps(validation, base.name), "training loss": _gaps(_calm(train), base.name)}
    colors = {run.name: look(i) for i, run in enumerate(runs)}
    accuracy_words = accuracy_key.removeprefix("eval_").replace("_", " ")
    panels: list[tuple[float, Curves, Callable[[Axes], None]]] = [
        (_LOSS, train, lambda axes: _losses(axes, train, colors, "training loss")),
        (_LOSS, validation, lambda axes: _losses(axes, validation, colors, "validation loss")),
        (_SMALL, accuracy, lambda axes: _shares(axes, accuracy, colors, accuracy_words)),
        (_SMALL, rate, lambda axes: _rates(axes, rate, colors)),
        *((_DIFFERENCE, found, _drawing(found, colors, words, base.name)) for words, found in differences.items()),
    ]
    panels = [panel for panel in panels if panel[1]]
    lanes = lanes_of(runs, axis, unit, limits, end)
    rows = rows_of(lanes, colors)
    lines = math.ceil(len(runs) / columns_of(runs))
    heights = [*([LANE * len(lanes)] if lanes else []), *(height for height, _, _ in panels)]
    figure, axes = stack(heights, TITLE + 0.3 + lines * ROW, foot_height(len(rows)), gap=0.24)
    finish(axes[-1], axis, label, limits)
    title(figure, f"{len(runs)} runs compared")
    draw_legend(figure, runs, colors)
    if lanes:
        draw_lanes(axes[0], lanes, limits, colors)
    below = axes[1:] if lanes else axes
    for panel, (_, _, draw) in zip(below, panels, strict=True):
        draw(panel)
    missing = [run.name for run in runs if run.name not in validation]
    if missing:
        note(below[0], f"no evaluation has been logged by {shorten(', '.join(missing), 80)}")
    explain(figure, rows)
    return figure


def loss_key(runs: Sequence[RunData]) -> str:
    """The evaluation loss that most runs have."""
    keys = [key for run in runs for key in run.keys(beginning="eval_") if is_loss(key)]
    return max(sorted(set(keys)), key=lambda key: (keys.count(key), key == "eval_loss"), default="eval_loss")


def _common(runs: Sequence[RunData], ending: str) -> str:
    """The metric with this ending that most runs have, empty if none has one."""
    keys = [key for run in runs for key in run.keys(beginning="eval_", ending=ending)]
    return max(sorted(set(keys)), key=keys.count, default="")


def _calm(curves: Curves) -> dict[str, Points]:
    """Averages in place of long raw curves."""
    return {
        name: list(zip(*smoothed(points), strict=True)) if len(points) >= SMOOTH_FROM else points
        for name, points in curves.items()
    }


def _gaps(curves: Curves, base: str) -> dict[str, Points]:
    if base not in curves:
        return {}
    found = {name: difference(points, curves[base]) for name, points in curves.items() if name != base}
    return {name: points for name, points in found.items() if points}


# Panels ---------------------------------------------------------------------------------------------------------------

Looks = Mapping[str, tuple[str, str]]


def _lines(axes: Axes, curves: Curves, looks: Looks) -> None:
    for name, points in curves.items():
        color, style = looks[name]
        axes.plot(*finite(points), color=color, linestyle=style, linewidth=1.7, **dots(points, most=12))
    mark_broken(axes, list(curves.values()))


def _losses(axes: Axes, curves: Curves, looks: Looks, words: str) -> None:
    for name, points in curves.items():
        color, style = looks[name]
        draw_curve(axes, points, color, linestyle=style, **dots(points, most=12))
    mark_broken(axes, list(curves.values()))
    log_scale(axes, [value for points in curves.values() for _, value in points if math.isfinite(value)])
    axes.set_ylabel(words, fontsize=9.5)


def _shares(axes: Axes, curves: Curves, looks: Looks, words: str) -> None:
    _lines(axes, curves, looks)
    share_axis(axes, list(curves.values()))
    axes.set_ylabel(words, fontsize=9.5)


def _rates(axes: Axes, curves: Curves, looks: Looks) -> None:
    _lines(axes, curves, looks)
    rate_axis(axes)
    axes.set_ylabel("learning rate", fontsize=9)


def _drawing(curves: Curves, looks: Looks, words: str, base: str) -> Callable[[Axes], None]:
    return lambda axes: _difference(axes, curves, looks, words, base)


def _difference(axes: Axes, curves: Curves, looks: Looks, words: str, base: str) -> None:
    axes.axhline(0, color=looks[base][0], linewidth=1.2)
    _lines(axes, curves, looks)
    axes.set_ylabel(f"{words}:\nrun - longest", fontsize=9)
    longest = shorten(base, 60)
    text = f"difference: run minus {longest}, the longest run, at equal x; below 0 the loss of the run is lower"
    axes.set_title(text, fontsize=9, color=DARK, loc="left", pad=3, parse_math=False)


def _legend_entries(runs: Sequence[RunData]) -> list[str]:
    return [shorten(run.name, 60) for run in runs]


def columns_of(runs: Sequence[RunData]) -> int:
    """As many as the longest name leaves room for."""
    widest = max(len(name) for name in _legend_entries(runs)) * 0.085 + 0.75
    return max(1, min(4, int((WIDTH - LEFT - RIGHT) / widest)))


def draw_legend(figure: Figure, runs: Sequence[RunData], looks: Looks) -> None:
    """The names of the runs below the title."""
    columns, total = columns_of(runs), figure.get_figheight()
    for i, (run, name) in enumerate(zip(runs, _legend_entries(runs), strict=True)):
        line, column = divmod(i, columns)
        x = (LEFT + column * (WIDTH - LEFT - RIGHT) / columns) / WIDTH
        y = 1 - (TITLE + 0.24 + line * ROW) / total
        color, style = looks[run.name]
        figure.add_artist(_sample(x, y, color, style))
        figure.text(x + 0.042, y, name, fontsize=9.5, va="center", color=DARK, parse_math=False, gid="run")


def _sample(x: float, y: float, color: str, style: Any) -> Line2D:
    return Line2D([x, x + 0.034], [y, y], color=color, linestyle=style, linewidth=2.4)
