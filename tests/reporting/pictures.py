"""Runs to draw, and what must hold of every picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from morphing_trainer.reporting.records import Record
from morphing_trainer.reporting.run_data import RunData


def lines(steps: int = 200, every: int = 10, evaluate: int = 50, shift: float = 0.0, **extra: float) -> list[Any]:
    """A log with a falling loss; 64 tokens, half a second and 1e9 operations per step."""
    found: list[dict[str, Any]] = []
    for step in range(every, steps + 1, every):
        place = {"step": step, "tokens": 64 * step, "seconds": 0.5 * step, "total_flos": 1e9 * step}
        loss = 2 + shift + 6 * math.exp(-step / steps)
        found.append({"loss": loss, "learning_rate": 3e-4 * step / steps, **place})
        if evaluate and step % evaluate == 0:
            found.append({"eval_loss": loss + 0.1, **extra, **place})
    return found


def run(
    name: str = "demo", records: Sequence[Record] = (), stages: Mapping[str, float] | None = None, **options: Any
) -> RunData:
    return RunData(name, lines(**options), tuple(records), stages or {"train": 0.0})


def texts(figure: Figure) -> list[Text]:
    """Everything that is written: labels, legends, and the numbers of axes within their limits."""
    figure.canvas.draw()
    found = list(figure.texts)
    legends = [*figure.legends]
    for axes in figure.axes:
        found += [*axes.texts, *(axes.title, axes._left_title, axes._right_title)]  # type: ignore[attr-defined]
        legends += [legend] if (legend := axes.get_legend()) else []
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            found.append(axis.label)
            low, high = sorted(limits)
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            found += [tick.label1 for tick in ticks if low <= tick.get_loc() <= high]
    found += [text for legend in legends for text in legend.get_texts()]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in texts(figure))


def assert_readable(figure: Figure) -> None:
    """No word covers another, and all lie inside the picture, on a white ground."""
    assert to_hex(figure.get_facecolor()) == "#ffffff"
    boxes = [(text.get_window_extent().padded(-0.5), text.get_text()) for text in texts(figure)]
    for i, (box, text) in enumerate(boxes):
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width, text
        assert box.y0 >= 0 and box.y1 <= figure.bbox.height, text
        for other, beside in boxes[:i]:
            assert not box.overlaps(other), f"{text!r} covers {beside!r}"
