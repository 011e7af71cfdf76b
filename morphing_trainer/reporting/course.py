"""The course of one run over one axis: losses, accuracy, learning rate, size and analysis; operations and stages."""

from __future__ import annotations

from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from morphing_trainer.reporting.canvas import BLUE, DARK, GREEN, GREY, ORANGE, PURPLE, RED, stack, title
from morphing_trainer.reporting.console import count
from morphing_trainer.reporting.growth import sizes
from morphing_trainer.reporting.marks import Row, explain, explained, foot_height, head_height, mark_operations, place
from morphing_trainer.reporting.panels import (
    LEGEND,
    draw_lines,
    draw_losses,
    draw_sizes,
    log_scale,
    rate_axis,
    share_axis,
)
from morphing_trainer.reporting.run_data import Axis as XAxis
from morphing_trainer.reporting.run_data import RunData
from morphing_trainer.reporting.series import Points, finite, is_loss, metric_name
from morphing_trainer.reporting.stages import STRIP, bands, draw_stages, unnamed

_LOSS, _SMALL = 3.6, 1.35  # inches
TITLE = 0.3

Curves = dict[str, tuple[Points, str, Any]]
_SINCE = " since the last operation"
_KINDS = {
    "attn": ("attention", BLUE),
    "mlp": ("MLP", ORANGE),
    "wte": ("embedding", GREEN),
    "wpe": ("positions", PURPLE),
}


def scaled(points: Points, unit: float) -> Points:
    return [(x / unit, value) for x, value in points]


def course_figure(run: RunData, axis: XAxis) -> Figure:
    """The picture of one run over one axis.

    Raises:
        ConfigError: if its log lines do not say where they are on this axis.
    """
    places = run.places([float(record.step) for record in run.records], axis)
    begins = dict(zip(run.stages, run.places(list(run.stages.values()), axis), strict=True))
    train = run.points("loss", axis)
    evaluations = {
        key: points for key in filter(is_loss, run.keys(beginning="eval_")) if (points := run.points(key, axis))
    }
    panels = _panels(run, axis)
    curves = [train, *evaluations.values(), *(points for _, lines in panels for points, _, _ in lines.values())]
    end = max([1e-9, *places, *begins.values(), *(x for points in curves for x, _ in points)])
    unit, label = axis.unit(end)
    places, end = [at / unit for at in places], end / unit
    size = sizes(run.records, places, end)
    limits = (-0.015 * end, 1.015 * end)
    marks = place(run.records, *limits, places)
    named = len(begins) > 1
    stages = bands(list(begins), [at / unit for at in begins.values()], end, whole=end) if named else []
    rows: list[Row] = [*explained(marks), *unnamed(stages)]
    heights = [*([STRIP] if named else []), _LOSS, *(_SMALL for _ in panels), *([0.95] if size else [])]
    figure, axes = stack(heights, head_height(marks) + TITLE, foot_height(len(rows)))
    title(figure, run.name)
    below = axes[1:] if named else axes
    finish(axes[-1], axis, label, limits)
    draw_losses(below[0], scaled(train, unit), {key: scaled(points, unit) for key, points in evaluations.items()})
    for panel, (draw, lines) in zip(below[1:], panels, strict=False):
        draw(panel, {name: (scaled(points, unit), color, style) for name, (points, color, style) in lines.items()})
    if size:
        draw_sizes(below[-1], size)
    mark_operations(figure, axes, marks, legend=below[0])
    if named:
        draw_stages(axes, stages)
    if not evaluations:
        below[0].plot([], [], " ", label="no evaluation has been logged")
    few = sum(map(len, [train, *evaluations.values()])) <= 100  # of many points, finding the best place takes long
    below[0].legend(loc="best" if few else "upper right", fontsize=9.5, **LEGEND)
    explain(figure, rows)
    return figure


def finish(bottom: Axes, axis: XAxis, label: str, limits: tuple[float, float]) -> None:
    """Limits, numbers and words of the x axis."""
    bottom.set_xlim(*limits)
    bottom.set_xlabel(label)
    bottom.xaxis.set_major_locator(MaxNLocator(integer=axis.name in ("steps", "tokens"), nbins=9))
    if axis.name == "tokens":
        bottom.xaxis.set_major_formatter(FuncFormatter(lambda x, _: count(int(x))))
    else:
        bottom.xaxis.set_major_formatter(
            FuncFormatter(lambda x, _: f"{x:,.0f}" if axis.name == "steps" else f"{x:,.4g}")
        )


def note(axes: Axes, text: str) -> None:
    """A remark above a panel."""
    axes.set_title(text, loc="right", fontsize=9, color=GREY, style="italic", pad=3, parse_math=False)


def _panels(run: RunData, axis: XAxis) -> list[tuple[Any, Curves]]:
    """(how it is drawn, its curves) of every small panel for which there are numbers."""
    colors = cycle((ORANGE, BLUE, GREEN, PURPLE, RED))
    accuracy: Curves = {
        metric_name(key).removeprefix("evaluation "): (run.points(key, axis), color, "-")
        for key, color in zip(run.keys(beginning="eval_", ending="accuracy"), colors, strict=False)
    }
    rate: Curves = {"learning rate": (run.points("learning_rate", axis), DARK, "-")}
    ranks = _analysis(run, axis, "rank_share")
    if points := run.points("analysis/rank_use", axis):
        ranks["adapters"] = (points, RED, "--")
    drift = _analysis(run, axis, "drift_start")
    drift |= {f"{name}{_SINCE}": (p, c, "--") for name, (p, c, _) in _analysis(run, axis, "drift_operation").items()}
    found: list[tuple[Any, Curves]] = [
        (_draw_accuracy, accuracy),
        (_draw_rate, {name: line for name, line in rate.items() if line[0]}),
        (_draw_ranks, ranks),
        (_draw_drift, drift),
    ]
    return [(draw, curves) for draw, curves in found if curves]


def _analysis(run: RunData, axis: XAxis, measure: str) -> Curves:
    found = {
        name: (points, color, "-")
        for kind, (name, color) in _KINDS.items()
        if (points := run.points(f"analysis/{measure}_{kind}", axis))
    }
    return dict(found)


def _draw_accuracy(axes: Axes, curves: Curves) -> None:
    draw_lines(axes, curves, next(iter(curves)) if len(curves) == 1 else "accuracy")
    share_axis(axes, [points for points, _, _ in curves.values()])


def _draw_rate(axes: Axes, curves: Curves) -> None:
    draw_lines(axes, curves, "learning rate")
    rate_axis(axes)


def _draw_ranks(axes: Axes, curves: Curves) -> None:
    draw_lines(axes, curves, "effective rank\n/ full rank")
    share_axis(axes, [points for points, _, _ in curves.values()])


def _draw_drift(axes: Axes, curves: Curves) -> None:
    """Since the start as lines, since the last operation dashed, in the same colours."""
    since = {name: curve for name, curve in curves.items() if name.endswith(_SINCE)}
    for points, color, style in since.values():
        axes.plot(*finite(points), color=color, linestyle=style, linewidth=1.4)
    if since:
        axes.plot([], [], color=GREY, linestyle="--", label="since the last operation")
    start = {name: curve for name, curve in curves.items() if name not in since}
    draw_lines(axes, start, "drift since start\n(1 - cosine)")
    axes.legend(loc="best", fontsize=8.5, ncols=5, **LEGEND)
    log_scale(axes, [value for points, _, _ in curves.values() for _, value in points])
