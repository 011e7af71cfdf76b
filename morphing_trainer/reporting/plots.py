"""The picture that a run leaves behind: losses over optimizer steps, the operations marked, the parameters below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from morphing_trainer.reporting.canvas import empty_figure, save, stack
from morphing_trainer.reporting.growth import sizes
from morphing_trainer.reporting.marks import explain, explained, foot_height, head_height, mark_operations, place
from morphing_trainer.reporting.panels import LEGEND, draw_losses, draw_sizes
from morphing_trainer.reporting.records import Record
from morphing_trainer.reporting.series import is_loss, series

LOSS_HEIGHT, PARAMETER_HEIGHT = 4.2, 0.95  # inches


def plot_losses(log_history: Sequence[Mapping[str, Any]], records: Sequence[Record], path: str | Path) -> Path:
    """Write the picture as a PNG to `path`, creating its folder; an older picture is replaced in one go."""
    return save(losses_figure(log_history, records), path)


def losses_figure(log_history: Sequence[Mapping[str, Any]], records: Sequence[Record]) -> Figure:
    """The picture."""
    train = series(log_history, "loss")
    names = sorted({key for entry in log_history for key in entry if is_loss(key)})
    evaluations = {name: points for name in names if (points := series(log_history, name))}
    steps = [step for points in (train, *evaluations.values()) for step, _ in points] + [float(r.step) for r in records]
    if not steps:
        return empty_figure("Nothing has been logged yet")
    high = max(*steps, 1.0)
    limits = (-0.015 * high, 1.015 * high)
    curves = sizes(records, [float(record.step) for record in records], high)
    marks = place(records, *limits)
    rows = explained(marks)
    heights = [LOSS_HEIGHT, PARAMETER_HEIGHT] if curves else [LOSS_HEIGHT]
    figure, axes = stack(heights, head_height(marks), foot_height(len(rows)))
    draw_losses(axes[0], train, evaluations)
    mark_operations(figure, axes, marks)
    explain(figure, rows)
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(loc="upper right", fontsize=9.5, **LEGEND)
    if curves:
        draw_sizes(axes[-1], curves)
    bottom = axes[-1]
    bottom.set_xlim(*limits)
    bottom.set_xlabel("optimizer step")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    bottom.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    return figure
