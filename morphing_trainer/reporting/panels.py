"""The panels that pictures are put together from: losses, sizes, any other numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from morphing_trainer.reporting.canvas import BLUE, GREEN, GREY, ORANGE, PURPLE
from morphing_trainer.reporting.console import count, rate_text
from morphing_trainer.reporting.series import SMOOTH_FROM, Points, finite, metric_name, smoothed

LEGEND: dict[str, Any] = {"frameon": True, "framealpha": 0.9, "edgecolor": "none"}


def dots(points: Points, most: int = 40) -> dict[str, Any]:
    """Markers where the points are few: a lone point would not be seen as a line."""
    return {"marker": "o", "markersize": 4} if len(points) <= most else {"marker": "none"}


def draw_losses(axes: Axes, train: Points, evaluations: Mapping[str, Points]) -> None:
    """Training loss and, by key of the log, evaluation losses."""
    if train:
        averaged = " (thick: average)" if len(train) >= SMOOTH_FROM else ""
        draw_curve(axes, train, BLUE, label=f"training loss{averaged}")
    for (name, points), color in zip(evaluations.items(), cycle((ORANGE, GREEN, PURPLE, GREY)), strict=False):
        axes.plot(*finite(points), color=color, linewidth=1.8, label=metric_name(name), zorder=3, **dots(points))
    mark_broken(axes, [train, *evaluations.values()])
    values = [v for points in (train, *evaluations.values()) for _, v in points if math.isfinite(v)]
    log_scale(axes, values)
    axes.set_ylabel("loss")
    if not (train or evaluations):
        axes.set_yticks([])
        axes.text(0.5, 0.5, "No losses yet", transform=axes.transAxes, ha="center", color=GREY, fontsize=13)


def draw_curve(axes: Axes, points: Points, color: str, **style: Any) -> None:
    """One training curve; of many points (`SMOOTH_FROM`) a thick average over the raw, faint ones."""
    faint = len(points) >= SMOOTH_FROM
    raw = finite(points)
    if faint:
        axes.plot(*raw, color=color, linewidth=0.7, alpha=0.3)
    axes.plot(*(smoothed(points) if faint else raw), **{"color": color, "linewidth": 1.8, **dots(points), **style})


def mark_broken(axes: Axes, curves: Sequence[Points]) -> None:
    """A cross at the upper edge where a value is NaN or infinite."""
    broken = [x for points in curves for x, value in points if not math.isfinite(value)]
    if broken:
        style: dict[str, Any] = {"marker": "x", "color": "black", "linestyle": "none", "clip_on": False, "zorder": 6}
        axes.plot(broken, [0.985] * len(broken), transform=axes.get_xaxis_transform(), label="NaN or infinite", **style)


def log_scale(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis where a linear one would press everything against its foot."""
    if values and 0 < 40 * min(values) < max(values):
        axes.set_yscale("log")


def draw_lines(axes: Axes, curves: Mapping[str, tuple[Points, str, Any]], label: str) -> None:
    """Curves by name, each with its points, colour and line style, and a legend if there are several."""
    for name, (points, color, style) in curves.items():
        axes.plot(*finite(points), color=color, linestyle=style, linewidth=1.6, label=name, **dots(points))
    mark_broken(axes, [points for points, _, _ in curves.values()])
    axes.set_ylabel(label, fontsize=9)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    if len(curves) > 1:
        axes.legend(loc="best", fontsize=8.5, ncols=min(4, len(curves)), **LEGEND)


def share_axis(axes: Axes, curves: Sequence[Points]) -> None:
    """An axis from 0 to 1 at most, in percent; nearer where the values lie close together."""
    values = [value for points in curves for _, value in points if math.isfinite(value)]
    if values:
        low, high = min(values), max(values)
        margin = max(0.01, 0.12 * (high - low))
        axes.set_ylim(max(0.0, low - margin), min(1.02, high + margin) if high <= 1 else high + margin)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))


def rate_axis(axes: Axes) -> None:
    """A learning rate, from 0."""
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: rate_text(value)))


def draw_sizes(axes: Axes, sizes: Mapping[str, Points]) -> None:
    """Parameters, and the trainable ones, as steps."""
    for (key, points), color, style in zip(sizes.items(), (GREEN, PURPLE), ("-", "--"), strict=False):
        steps, values = zip(*points, strict=True)
        axes.step(steps, values, where="post", color=color, linestyle=style, linewidth=1.8, label=key)
        if key == "parameters":
            axes.fill_between(steps, values, step="post", color=color, alpha=0.15, linewidth=0)
    axes.set_ylim(0, 1.2 * max(value for points in sizes.values() for _, value in points))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: count(int(value))))
    axes.set_ylabel("parameters")
    if len(sizes) > 1:
        axes.legend(loc="lower right", fontsize=8.5, ncols=2, **LEGEND)
