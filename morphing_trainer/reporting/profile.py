"""Where the time of runs went: one bar per run."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from morphing_trainer.reporting.canvas import (
    BLUE,
    DARK,
    GREEN,
    ORANGE,
    PINK,
    RED,
    RIGHT,
    ROW,
    SKY,
    WIDTH,
    new_figure,
    shorten,
    title,
)
from morphing_trainer.reporting.console import duration
from morphing_trainer.reporting.lines import percent
from morphing_trainer.reporting.run_data import RunData
from morphing_trainer.reporting.times import PARTS, shares

_COLORS = dict(zip(PARTS, (BLUE, SKY, GREEN, ORANGE, RED, PINK, "#BBBBBB"), strict=True))
_BAR = 0.42  # inches


def profile_figure(runs: Sequence[RunData]) -> Figure:
    """A bar of 100 % for every run, in parts."""
    left, head, foot = 2.9, 0.95, 0.6
    height = _BAR * len(runs)
    total = head + height + foot
    figure = new_figure(total)
    axes = figure.add_axes((left / WIDTH, foot / total, (WIDTH - left - RIGHT) / WIDTH, height / total))
    title(figure, "Where the time went")
    for lane, run in enumerate(runs):
        begin = 0.0
        for part, share in shares(run.timing).items():
            axes.barh(lane, 100 * share, left=begin, height=0.72, color=_COLORS.get(part, DARK), edgecolor="white")
            if share >= 0.045:
                color = "white" if part in ("forward/backward", "optimizer", "morphs") else "black"
                axes.text(begin + 50 * share, lane, percent(share), ha="center", va="center", fontsize=9, color=color)
            begin += 100 * share
    axes.set_yticks(
        range(len(runs)), [f"{shorten(run.name, 26)} ({duration(sum(run.timing.values()))})" for run in runs]
    )
    axes.set_ylim(len(runs) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of wall time (%), as the host sees it")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    handles = [axes.barh([0], [0], color=color, label=part) for part, color in _COLORS.items()]
    y = 1 - (0.24 + 1.75 * ROW) / total
    figure.legend(handles=handles, loc="center", bbox_to_anchor=(0.5, y), ncols=len(PARTS), frameon=False, fontsize=9)
    return figure
