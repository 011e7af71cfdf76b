"""Operations in a picture: a line for each, named above it where names fit, numbered and explained below elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from morphing_trainer.reporting.canvas import DARK, GREY, LEFT, PURPLE, RED, RIGHT, ROW, WIDTH, shorten
from morphing_trainer.reporting.console import operation_text
from morphing_trainer.reporting.growth import ARCHITECTURE, FREEZING, SETTINGS, WORDS, kind_of
from morphing_trainer.reporting.records import Record

_MOST_LABELS, _LANES = 6, 4
LEGEND_COLUMNS = 3
_DASHED = (0, (4, 3))

Row = tuple[int, str, str]
"""An explanation at the foot: number, colour, text."""


class Mark:
    """The label of one operation, or of several too close to tell apart, at `x` (fraction of the axis) in a `lane`."""

    def __init__(self, record: Record, place: float, first: int, x: float, text: str, width: float) -> None:
        self.records, self.places = [record], [place]
        self.first, self.x, self.text, self.width = first, x, text, width
        self.lane = 0

    @property
    def numbered(self) -> bool:
        return self.text[0].isdigit()  # operations have names that begin with a letter

    @property
    def span(self) -> tuple[float, float]:
        """Where the text lies; it is centred on its line and shifted inwards at the edges."""
        left = min(max(self.x - self.width / 2, 0.0), 1.0 - self.width)
        return left, left + self.width


def place(
    records: Sequence[Record], low: float, high: float, places: Sequence[float] | None = None, lanes: int = _LANES
) -> list[Mark]:
    """Names above the axis where they fit; numbers, explained below the picture, where they do not.

    Args:
        low, high: limits of the x axis.
        places: of the operations on it; default: their steps.
        lanes: rows for labels; with one, all are numbers.
    """
    inches = WIDTH - LEFT - RIGHT
    places = [float(record.step) for record in records] if places is None else places
    fractions = [(place - low) / (high - low) for place in places]
    names = [operation_text(record.operation, record.value) for record in records]
    if lanes > 1 and len(records) <= _MOST_LABELS and all(len(name) <= 34 for name in names):
        marks = [
            Mark(record, places[i], i, fractions[i], name, (0.083 * len(name) + 0.12) / inches)
            for i, (record, name) in enumerate(zip(records, names, strict=True))
        ]
        if _stagger(marks, lanes):
            return marks
    marks = []
    for i, record in enumerate(records):
        mark = Mark(record, places[i], i, fractions[i], str(i + 1), 0.32 / inches)
        if _stagger([*marks, mark], lanes):
            marks.append(mark)
        else:  # more in one place than there are lanes
            last = marks[-1]
            last.records.append(record)
            last.places.append(places[i])
            last.text = f"{last.first + 1}-{i + 1}"
            last.width = 0.55 / inches
            _stagger(marks, lanes)
    return marks


def _stagger(marks: Sequence[Mark], lanes: int) -> bool:
    """Give each mark the lowest lane in which it is clear of the others. False if the lanes do not suffice."""
    for i, mark in enumerate(marks):
        left, right = mark.span
        taken = {m.lane for m in marks[:i] if m.span[0] < right and left < m.span[1]}
        free = [lane for lane in range(lanes) if lane not in taken]
        mark.lane = free[0] if free else lanes - 1
        if not free:
            return False
    return True


_COLORS = {ARCHITECTURE: RED, FREEZING: PURPLE, SETTINGS: GREY}
KINDS = {_COLORS[kind]: words for kind, words in WORDS.items()}


def kind_color(record: Record) -> str:
    return _COLORS[kind_of(record)]


def head_height(marks: Sequence[Mark]) -> float:
    """Inches that labels need above the panels."""
    return 0.3 + (max(mark.lane for mark in marks) + 1) * ROW * 1.15 if marks else 0.25


def foot_height(rows: int) -> float:
    """Inches that explanations need at the foot."""
    return 0.2 + math.ceil(rows / LEGEND_COLUMNS) * ROW if rows else 0.0


def explained(marks: Sequence[Mark]) -> list[Row]:
    """What the numbers say; nothing if names are there."""
    if not any(mark.numbered for mark in marks):
        return []
    return [
        (i, kind_color(record), f"step {record.step:,}  {operation_text(record.operation, record.value)}")
        for mark in marks
        for i, record in enumerate(mark.records, start=mark.first + 1)
    ]


def mark_operations(figure: Figure, axes: Sequence[Axes], marks: Sequence[Mark], legend: Axes | None = None) -> None:
    """A dashed line per operation through all `axes`, and its label above the first.

    Args:
        legend: panel whose legend tells the colours; default: the first.
    """
    upper, colors = axes[0], []
    height = upper.get_position().height * figure.get_figheight()
    for mark in marks:
        for record, place in zip(mark.records, mark.places, strict=True):
            colors.append(kind_color(record))
            for each in axes:
                each.axvline(place, color=colors[-1], linewidth=1.0, linestyle=_DASHED, alpha=0.7, gid="operation")
        own = {kind_color(record) for record in mark.records}
        color = own.pop() if len(own) == 1 else "#222222"
        y = 1 + (0.08 + (mark.lane + 0.5) * ROW * 1.15) / height
        leader = upper.get_xaxis_transform()
        upper.plot([mark.places[0]] * 2, [1, y], color=color, linewidth=0.8, transform=leader, clip_on=False, zorder=1)
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
    for color in dict.fromkeys(colors):
        (legend or upper).plot([], [], color=color, linewidth=1.0, linestyle=_DASHED, label=KINDS[color])


def explain(figure: Figure, rows: Sequence[Row]) -> None:
    """Numbered explanations in columns at the foot, read downwards."""
    total = figure.get_figheight()
    lines = math.ceil(len(rows) / LEGEND_COLUMNS)
    for position, (number, color, text) in enumerate(rows):
        column, line = divmod(position, lines)
        x = (LEFT + column * (WIDTH - LEFT - RIGHT) / LEGEND_COLUMNS) / WIDTH
        y = (0.12 + (lines - line - 0.5) * ROW) / total
        style: dict[str, Any] = {"fontsize": 8.5, "va": "center", "parse_math": False}
        figure.text(x + 0.016, y, str(number) if number else "", ha="right", color=color, fontweight="bold", **style)
        figure.text(x + 0.024, y, shorten(text, 46), color=DARK if number else color, **style)
