"""Runs against each other, as a picture: the loss over steps, tokens, time and computation, and the target."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from morphing_trainer.reporting.canvas import BOTTOM, GREY, LEFT, RIGHT, ROW, WIDTH, new_figure, shorten, title
from morphing_trainer.reporting.comparison import columns_of, draw_legend, look
from morphing_trainer.reporting.console import loss_text
from morphing_trainer.reporting.contest import Contest
from morphing_trainer.reporting.contest_tables import ratio_text
from morphing_trainer.reporting.course import TITLE, finish, scaled
from morphing_trainer.reporting.panels import dots, draw_curve, log_scale, mark_broken
from morphing_trainer.reporting.run_data import AXES, RunData

_HEIGHT, _BETWEEN, _HEADING = 2.7, 0.62, 0.3  # inches


def contest_figure(found: Contest, runs: Sequence[RunData]) -> Figure:
    """A panel for each axis, two in a row; `runs` give the names in the legend."""
    axes = [axis for axis in found.axes if any(axis in entrant.points for entrant in found.entrants)]
    columns = min(2, max(1, len(axes)))
    lines = math.ceil(len(axes) / columns)
    head = TITLE + 0.3 + math.ceil(len(runs) / columns_of(runs)) * ROW + _HEADING
    total = head + lines * _HEIGHT + (lines - 1) * (_BETWEEN + _HEADING) + BOTTOM
    figure = new_figure(total)
    without = [entrant.name for entrant in found.entrants if not entrant.points]
    none = f" (none of {shorten(', '.join(without), 50)})" if without else ""
    title(figure, f"{found.words}: {len(runs)} runs compared{none}")
    draw_legend(figure, runs, {run.name: look(number) for number, run in enumerate(runs)})
    width = (WIDTH - RIGHT - LEFT * columns) / columns
    for number, axis in enumerate(axes):
        line, column = divmod(number, columns)
        left = LEFT + column * (width + LEFT)
        bottom = total - head - _HEIGHT - line * (_HEIGHT + _BETWEEN + _HEADING)
        panel = figure.add_axes((left / WIDTH, bottom / total, width / WIDTH, _HEIGHT / total))
        _panel(panel, found, axis, width)
    return figure


def _panel(axes: Axes, found: Contest, axis: str, width: float) -> None:
    curves = [entrant.points.get(axis, []) for entrant in found.entrants]
    end = max((x for points in curves for x, _ in points), default=1.0) or 1.0
    unit, label = AXES[axis].unit(end)
    limits = (-0.015 * end / unit, 1.015 * end / unit)
    axes.grid(True, color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for number, (entrant, points) in enumerate(zip(found.entrants, curves, strict=True)):
        color, style = look(number)
        if points:
            here = scaled(points, unit)
            draw_curve(axes, here, color, linestyle=style, **dots(here, most=25))
        for place in entrant.operations.get(axis, ()):  # small ticks at the foot: operations
            axes.plot(
                [place / unit] * 2, [0, 0.035], color=color, transform=axes.get_xaxis_transform(), gid="operation"
            )
        there = entrant.reached.get(axis)
        if there is not None and not there.from_start and found.target is not None:
            ring = {"markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.6}
            axes.plot([there.x / unit], [found.target], "o", color=color, zorder=7, gid="reached", **ring)  # type: ignore[arg-type]
    mark_broken(axes, curves)
    if found.target is not None and any(curves):
        axes.axhline(found.target, color=GREY, linestyle=(0, (4, 3)), linewidth=1.1, gid="target")
    log_scale(axes, [value for points in curves for _, value in points if math.isfinite(value)])
    finish(axes, AXES[axis], label, limits)
    axes.xaxis.set_major_locator(MaxNLocator(integer=axis in ("steps", "tokens"), nbins=max(4, int(width))))
    axes.set_ylabel(found.words, fontsize=9.5)
    axes.set_title(_heading(found, axis), loc="left", fontsize=9, color=GREY, pad=4, parse_math=False)


def _heading(found: Contest, axis: str) -> str:
    """Who was first, over the panel."""
    if found.target is None:
        return ""
    target = f"{loss_text(found.target)} (dashed)"
    names = found.first.get(axis, ())
    if not names:
        return f"{target}: fewer than two have reached it"
    if had := found.had(axis):
        return f"{target}: {shorten(' and '.join(had), 28)} from the first loss on"
    ratios = sorted(
        there.ratio
        for entrant in found.entrants
        if (there := entrant.reached.get(axis)) and there.ratio is not None and entrant.name not in names
    )
    ahead = f", {ratio_text(ratios[0])} ahead of the next" if ratios and ratios[0] >= 1.005 else ""
    return f"{target}: {shorten(' and '.join(names), 28)} first{ahead}"
