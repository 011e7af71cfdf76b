"""The picture of a run: losses over optimizer steps, the operations marked, the parameters below."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from morphing_trainer.reporting.adapters import adapter_changes
from morphing_trainer.reporting.console import count, operation_text
from morphing_trainer.reporting.records import Record

# Okabe and Ito's palette, which colour-blind readers can tell apart; red and purple darkened to carry white text.
_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _GREY = "#0072B2", "#E69F00", "#009E73", "#C45500", "#7B3294", "#555555"
_WIDTH, _LEFT, _RIGHT = 11.0, 0.85, 0.3  # inches
_LOSS_HEIGHT, _PARAMETER_HEIGHT, _GAP, _BOTTOM, _ROW = 4.2, 0.95, 0.18, 0.6, 0.21  # inches
_MOST_LABELS, _LANES = 6, 4
_LEGEND_COLUMNS = 3
_SMOOTH_FROM = 150  # points from which a moving average is drawn over the raw training loss

Points = list[tuple[float, float]]  # (step, value), in the order they were logged


def series(log_history: Sequence[Mapping[str, Any]], key: str) -> Points:
    """The points of `key`. Where a run went back to an earlier checkpoint, what it had done beyond it is dropped."""
    points: Points = []
    for entry in log_history:
        step, value = entry.get("step"), entry.get(key)
        if not isinstance(step, int | float) or not isinstance(value, int | float):
            continue
        if points and points[-1][0] > step:
            points = [point for point in points if point[0] < step]
        points.append((float(step), float(value)))
    return points


def plot_losses(log_history: Sequence[Mapping[str, Any]], records: Sequence[Record], path: str | Path) -> Path:
    """Write the picture as a PNG to `path`, creating its folder; an older picture is replaced in one go."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    with unfinished.open("wb") as file:
        losses_figure(log_history, records).savefig(file, format="png", dpi=130)
    os.replace(unfinished, path)
    return path


def losses_figure(log_history: Sequence[Mapping[str, Any]], records: Sequence[Record]) -> Figure:
    """The picture as a `Figure` with its own Agg canvas: neither pyplot nor the global backend is touched."""
    train = series(log_history, "loss")
    names = sorted({key for entry in log_history for key in entry if key.startswith("eval_") and key.endswith("loss")})
    evaluations = {name: points for name in names if (points := series(log_history, name))}
    steps = [step for points in (train, *evaluations.values()) for step, _ in points] + [float(r.step) for r in records]
    if not steps:
        return _empty()
    high = max(*steps, 1.0)
    limits = (-0.015 * high, 1.015 * high)
    sizes = _sizes(records, high)
    marks = _place(records, *limits)
    figure, axes = _canvas(marks, bool(sizes))
    _draw_losses(axes[0], train, evaluations)
    _mark_operations(figure, axes, marks)
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(loc="upper right", frameon=True, framealpha=0.9, edgecolor="none", fontsize=9.5)
    if sizes:
        _draw_sizes(axes[-1], sizes)
    bottom = axes[-1]
    bottom.set_xlim(*limits)
    bottom.set_xlabel("optimizer step")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    bottom.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    return figure


def _empty() -> Figure:
    figure = Figure(figsize=(_WIDTH, 4.0))
    FigureCanvasAgg(figure)
    figure.text(0.5, 0.5, "Nothing has been logged yet", ha="center", va="center", fontsize=15, color=_GREY)
    return figure


# Operations -----------------------------------------------------------------------------------------------------------


class _Mark:
    """The label of one operation, or of several too close to tell apart, at `x` (fraction of the axis) in a `lane`."""

    def __init__(self, records: Sequence[Record], first: int, x: float, text: str, width: float) -> None:
        self.records, self.first, self.x, self.text, self.width = list(records), first, x, text, width
        self.lane = 0

    @property
    def numbered(self) -> bool:
        return self.text[0].isdigit()  # operations have names that begin with a letter

    @property
    def span(self) -> tuple[float, float]:
        """Where the text lies; it is centred on its line and shifted inwards at the edges."""
        left = min(max(self.x - self.width / 2, 0.0), 1.0 - self.width)
        return left, left + self.width


def _place(records: Sequence[Record], low: float, high: float) -> list[_Mark]:
    """Names above the axis where they fit; numbers, explained below the picture, where they do not."""
    inches = _WIDTH - _LEFT - _RIGHT
    places = [(record.step - low) / (high - low) for record in records]
    names = [operation_text(record.operation, record.value) for record in records]
    if len(records) <= _MOST_LABELS and all(len(name) <= 34 for name in names):
        marks = [
            _Mark([record], i, x, name, (0.083 * len(name) + 0.12) / inches)
            for i, (record, x, name) in enumerate(zip(records, places, names, strict=True))
        ]
        if _stagger(marks):
            return marks
    marks = []
    for i, (record, x) in enumerate(zip(records, places, strict=True)):
        mark = _Mark([record], i, x, str(i + 1), 0.32 / inches)
        if _stagger([*marks, mark]):
            marks.append(mark)
        else:  # more in one place than there are lanes
            last = marks[-1]
            last.records.append(record)
            last.text = f"{last.first + 1}-{i + 1}"
            last.width = 0.55 / inches
            _stagger(marks)
    return marks


def _stagger(marks: Sequence[_Mark]) -> bool:
    """Give each mark the lowest lane in which it is clear of the others. False if the lanes do not suffice."""
    for i, mark in enumerate(marks):
        left, right = mark.span
        taken = {m.lane for m in marks[:i] if m.span[0] < right and left < m.span[1]}
        free = [lane for lane in range(_LANES) if lane not in taken]
        mark.lane = free[0] if free else _LANES - 1
        if not free:
            return False
    return True


def _kind(record: Record) -> str:
    before, after = record.before, record.after
    if any(before.get(key) != after.get(key) for key in ("layers", "hidden", "mlp", "parameters")):
        return _RED
    # By name as well: a merge after which the adapters start anew leaves every number as it was.
    if adapter_changes(before, after) or "lora" in record.operation.split("_"):
        return _RED
    return _PURPLE if before.get("trainable") != after.get("trainable") else _GREY


_KINDS = {_RED: "architecture changes", _PURPLE: "freezing or thawing", _GREY: "hyper-parameter changes"}


def _mark_operations(figure: Figure, axes: Sequence[Axes], marks: Sequence[_Mark]) -> None:
    """A dashed line per operation through all `axes`; its label above the first; numbers explained at the foot."""
    upper = axes[0]
    height = upper.get_position().height * figure.get_figheight()
    rows = []
    for mark in marks:
        for i, record in enumerate(mark.records, start=mark.first + 1):
            color = _kind(record)
            for each in axes:
                each.axvline(record.step, color=color, linewidth=1.0, linestyle=(0, (4, 3)), alpha=0.7, gid="operation")
            rows.append((i, color, f"step {record.step:,}  {operation_text(record.operation, record.value)}"))
        colors = {_kind(record) for record in mark.records}
        color = colors.pop() if len(colors) == 1 else "#222222"
        y = 1 + (0.08 + (mark.lane + 0.5) * _ROW * 1.15) / height
        leader = upper.get_xaxis_transform()
        upper.plot(
            [mark.records[0].step] * 2, [1, y], color=color, linewidth=0.8, transform=leader, clip_on=False, zorder=1
        )
        box = {"boxstyle": "round,pad=0.22", "facecolor": color if mark.numbered else "white", "edgecolor": color}
        upper.text(
            sum(mark.span) / 2,
            y,
            mark.text,
            transform=upper.transAxes,
            ha="center",
            va="center",
            fontsize=8.5,
            color="white" if mark.numbered else color,
            parse_math=False,
            gid="operation label",
            bbox={**box, "linewidth": 0.8},
            zorder=5,
        )
    for color in dict.fromkeys(color for _, color, _ in rows):
        upper.plot([], [], color=color, linewidth=1.0, linestyle=(0, (4, 3)), label=_KINDS[color])
    if any(mark.numbered for mark in marks):
        _explain(figure, rows)


def _explain(figure: Figure, rows: Sequence[tuple[int, str, str]]) -> None:
    """The numbered operations in columns at the foot, read downwards."""
    total = figure.get_figheight()
    lines = math.ceil(len(rows) / _LEGEND_COLUMNS)
    for position, (number, color, text) in enumerate(rows):
        column, line = divmod(position, lines)
        x = (_LEFT + column * (_WIDTH - _LEFT - _RIGHT) / _LEGEND_COLUMNS) / _WIDTH
        y = (0.12 + (lines - line - 0.5) * _ROW) / total
        style: dict[str, Any] = {"fontsize": 8.5, "va": "center", "parse_math": False}
        figure.text(x + 0.016, y, str(number), ha="right", color=color, fontweight="bold", **style)
        figure.text(x + 0.024, y, text if len(text) <= 46 else text[:43] + "...", color="#333333", **style)


# Panels ---------------------------------------------------------------------------------------------------------------


def _canvas(marks: Sequence[_Mark], with_sizes: bool) -> tuple[Figure, list[Axes]]:
    """A figure as high as its parts need; sizes are set in inches so that text never runs into text."""
    entries = sum(len(mark.records) for mark in marks) if any(mark.numbered for mark in marks) else 0
    foot = 0.2 + math.ceil(entries / _LEGEND_COLUMNS) * _ROW if entries else 0.0
    head = 0.3 + (max(mark.lane for mark in marks) + 1) * _ROW * 1.15 if marks else 0.25
    below = _PARAMETER_HEIGHT + _GAP if with_sizes else 0.0
    total = foot + _BOTTOM + below + _LOSS_HEIGHT + head
    figure = Figure(figsize=(_WIDTH, total))
    FigureCanvasAgg(figure)
    left, width = _LEFT / _WIDTH, (_WIDTH - _LEFT - _RIGHT) / _WIDTH
    upper = figure.add_axes((left, (foot + _BOTTOM + below) / total, width, _LOSS_HEIGHT / total))
    axes = [upper]
    if with_sizes:
        place = (left, (foot + _BOTTOM) / total, width, _PARAMETER_HEIGHT / total)
        axes.append(figure.add_axes(place, sharex=upper))
        upper.tick_params(labelbottom=False)
    for each in axes:
        each.grid(True, color="#E6E6E6", linewidth=0.7)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw_losses(axes: Axes, train: Points, evaluations: Mapping[str, Points]) -> None:
    if train:
        raw, smooth = _finite(train), _smoothed(train)
        faint = len(train) >= _SMOOTH_FROM
        label = "training loss" + (" (thick: average)" if faint else "")
        axes.plot(*raw, color=_BLUE, linewidth=0.7 if faint else 1.6, alpha=0.3 if faint else 1.0, **_dots(train))
        axes.plot(*(smooth if faint else raw), color=_BLUE, linewidth=1.8, label=label)
    for (name, points), color in zip(evaluations.items(), cycle((_ORANGE, _GREEN, _PURPLE, _GREY)), strict=False):
        label = "evaluation loss" if name == "eval_loss" else f"evaluation {name[5:].replace('_', ' ')}"
        axes.plot(*_finite(points), color=color, linewidth=1.8, label=label, zorder=3, **_dots(points))
    broken = [step for points in (train, *evaluations.values()) for step, value in points if not math.isfinite(value)]
    if broken:
        style: dict[str, Any] = {"marker": "x", "color": "black", "linestyle": "none", "clip_on": False, "zorder": 6}
        axes.plot(broken, [0.985] * len(broken), transform=axes.get_xaxis_transform(), label="NaN or infinite", **style)
    finite = [v for points in (train, *evaluations.values()) for _, v in points if math.isfinite(v)]
    if finite and 0 < 40 * min(finite) < max(finite):
        axes.set_yscale("log")
    axes.set_ylabel("loss")
    if not (finite or broken):
        axes.set_yticks([])
        axes.text(0.5, 0.5, "No losses yet", transform=axes.transAxes, ha="center", color=_GREY, fontsize=13)


def _dots(points: Points) -> dict[str, Any]:
    """Markers where the points are few: a lone point would not be seen as a line."""
    return {"marker": "o", "markersize": 4} if len(points) <= 40 else {}


def _finite(points: Points) -> tuple[list[float], list[float]]:
    """Steps and values, with a gap in the line where the value is NaN or infinite."""
    return [step for step, _ in points], [value if math.isfinite(value) else math.nan for _, value in points]


def _smoothed(points: Points) -> tuple[list[float], list[float]]:
    """A centred average over about 2 % of the points (one that looks back only would lie above a falling loss)."""
    values = np.array([value for _, value in points])
    finite = np.isfinite(values)
    sums = np.concatenate(([0.0], np.cumsum(np.where(finite, values, 0.0))))
    counts = np.concatenate(([0], np.cumsum(finite)))
    index = np.arange(len(points))
    reach = np.minimum(max(2, len(points) // 100), np.minimum(index, index[::-1]))  # narrower at the ends
    low, high = index - reach, index + reach + 1
    average = (sums[high] - sums[low]) / np.maximum(1, counts[high] - counts[low])
    return [step for step, _ in points], np.where(finite, average, np.nan).tolist()


def _sizes(records: Sequence[Record], end: float) -> dict[str, Points]:
    """Parameters, and trainable parameters where they differ, as steps from 0 to `end`. Empty if not known."""
    sizes: dict[str, Points] = {}
    for key in ("parameters", "trainable"):
        known = [record for record in records if key in record.before and key in record.after]
        if known:
            sizes[key] = [(0.0, known[0].before[key]), *((float(r.step), r.after[key]) for r in known)]
            sizes[key].append((max(end, sizes[key][-1][0]), sizes[key][-1][1]))
    if sizes.get("trainable") == sizes.get("parameters"):
        sizes.pop("trainable", None)
    return sizes


def _draw_sizes(axes: Axes, sizes: Mapping[str, Points]) -> None:
    for (key, points), color, style in zip(sizes.items(), (_GREEN, _PURPLE), ("-", "--"), strict=False):
        steps, values = zip(*points, strict=True)
        axes.step(steps, values, where="post", color=color, linestyle=style, linewidth=1.8, label=key)
        if key == "parameters":
            axes.fill_between(steps, values, step="post", color=color, alpha=0.15, linewidth=0)
    axes.set_ylim(0, 1.2 * max(value for points in sizes.values() for _, value in points))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: count(int(value))))
    axes.set_ylabel("parameters")
    if len(sizes) > 1:
        axes.legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none", fontsize=8.5, ncols=2)
