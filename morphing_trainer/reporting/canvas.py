"""What all pictures share: colours, sizes in inches so that text never runs into text, panels, how they are saved."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart; red and purple darkened to carry white text.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#C45500", "#7B3294", "#555555"
SKY, PINK, BLACK = "#56B4E9", "#CC79A7", "#000000"
DARK = "#333333"

WIDTH, LEFT, RIGHT = 11.0, 0.95, 0.3  # inches
ROW, GAP, BOTTOM = 0.21, 0.18, 0.6  # inches

MADE_BY = "morphing_trainer"
"""Written into every picture, so that it is known as one of ours."""


def new_figure(height: float) -> Figure:
    """An empty figure with its own Agg canvas: neither pyplot nor the global backend is touched."""
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def stack(heights: Sequence[float], head: float, foot: float, gap: float = GAP) -> tuple[Figure, list[Axes]]:
    """A figure with panels of these heights below each other, which share their x axis.

    Args:
        head, foot: inches above the first panel, and below the last one's axis labels.
    """
    total = foot + BOTTOM + sum(heights) + gap * (len(heights) - 1) + head
    figure = new_figure(total)
    left, width = LEFT / WIDTH, (WIDTH - LEFT - RIGHT) / WIDTH
    axes: list[Axes] = []
    top = total - head
    for height in heights:
        place = (left, (top - height) / total, width, height / total)
        axes.append(figure.add_axes(place, sharex=axes[0] if axes else None))
        top -= height + gap
    for each in axes:
        each.grid(True, color="#E6E6E6", linewidth=0.7)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
    for each in axes[:-1]:
        each.tick_params(labelbottom=False)
    return figure, axes


def empty_figure(text: str) -> Figure:
    """A picture that only says why there is none."""
    figure = new_figure(4.0)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=15, color=GREY)
    return figure


def title(figure: Figure, text: str) -> None:
    """A heading at the upper left."""
    y = 1 - 0.24 / figure.get_figheight()
    figure.text(LEFT / WIDTH, y, text, fontsize=12.5, fontweight="bold", color=DARK, va="center", parse_math=False)


def save(figure: Figure, path: str | Path) -> Path:
    """Write the picture as PNG or SVG, by the suffix, creating its folder; an older picture is replaced in one go."""
    path = Path(path)
    kind = path.suffix.removeprefix(".") or "png"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    about = {"Creator": MADE_BY, "Date": None} if kind == "svg" else {"Software": MADE_BY}
    # Ids in an SVG are random without a salt, and equal pictures would be different files.
    with unfinished.open("wb") as file, matplotlib.rc_context({"svg.hashsalt": MADE_BY}):
        figure.savefig(file, format=kind, dpi=130, metadata=about)
    os.replace(unfinished, path)
    return path


def is_ours(path: Path) -> bool:
    """Whether a file is a picture that `save` has written."""
    with path.open("rb") as file:
        head = file.read(4096)
    return MADE_BY.encode() in head and (head.startswith(b"\x89PNG\r\n") or b"<svg" in head)


def shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
