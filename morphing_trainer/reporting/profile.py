"""Where the time of runs went: one bar per run; and the same as a line of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from morphing_trainer.reporting.run_data import RunData
from morphing_trainer.reporting.times import PARTS, shares

_COLORS = dict(zip(PARTS, (BLUE, SKY, GREEN, ORANGE, RED, PINK, "#BBBBBB"), strict=True))
_BAR = 0.42  # inches


def timing_line(profile: Mapping[str, float]) -> str:
    """`forward/backward 71 %, optimizer 12 %, ...`, largest first; empty before any time."""
    found = sorted(shares(profile).items(), key=lambda item: -item[1])
    return ", ".join(f"{part} {_percent(share)}" for part, share in found)


def analysis_line(numbers: Mapping[str, float]) -> str:
    """`analysis: rank share attn 82 %, mlp 90 %; ...; adapters use 43 % of their rank`; empty without such numbers."""
    parts = []
    for measure, words in (
        ("rank_share", "rank share"),
        ("drift_start", "drift"),
        ("drift_operation", "since operation"),
    ):
        begin = f"analysis/{measure}_"
        found = {key.removeprefix(begin): value for key, value in numbers.items() if key.startswith(begin)}
        write = _percent if measure == "rank_share" else "{:.2g}".format
        if found:
            parts.append(f"{words} " + ", ".join(f"{name} {write(value)}" for name, value in found.items()))
    if "analysis/rank_use" in numbers:
        parts.append(f"adapters use {_percent(numbers['analysis/rank_use'])} of their rank")
    return f"analysis: {'; '.join(parts)}" if parts else ""


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0095 else "< 1 %"


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
                axes.text(begin + 50 * share, lane, _percent(share), ha="center", va="center", fontsize=9, color=color)
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
