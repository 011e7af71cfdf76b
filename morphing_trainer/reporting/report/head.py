"""What stands above the curves of a chart: the names of the stages, and the numbers of the operations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from markupsafe import Markup

from morphing_trainer.reporting.report.chart import Frame
from morphing_trainer.reporting.report.lanes import Label, labels
from morphing_trainer.reporting.report.text import el, fnum, joined

WIDE, NARROW = 640.0, 270.0
"""Pixels of the curves that labels have to find room in, on wide and narrow pages; they may be more."""
_ROW, _CHIP, _STAGE = 20, 16, 18


def head(frame: Frame, linked: Collection[int]) -> tuple[Markup, int]:
    """The picture, and its height in pixels.

    Args:
        linked: numbers of operations, from 1, that have a row in the journal to go to.
    """
    places = [frame.at(step) for step, _, _ in frame.operations]
    forms = {"wide": labels(places, WIDE), "narrow": labels(places, NARROW)} if places else {}
    above = _STAGE if len(frame.stages) > 1 else 0
    rows = max((label.row + 1 for form in forms.values() for label in form), default=0)
    parts: list[Any] = _stages(frame) if above else []
    for name, form in forms.items():
        chips = [_chip(frame, label, above, rows, linked) for label in form]
        parts.append(el("g", *chips, class_=name))
    return joined(parts), above + rows * _ROW


def _chip(frame: Frame, label: Label, above: int, rows: int, linked: Collection[int]) -> Markup:
    """A number, or several as one, that leads to the journal."""
    told = frame.operations[label.first : label.last + 1]
    looks = {look for _, look, _ in told}
    look = looks.pop() if len(looks) == 1 else "several"
    words = "\n".join(words for _, _, words in told[:12]) + (f"\nand {len(told) - 12} more" if len(told) > 12 else "")
    y = above + (rows - 1 - label.row) * _ROW
    box = el("rect", x=fnum(-label.width / 2), width=fnum(label.width), y=y, height=_CHIP, rx=4)
    text = el("text", label.text, x=0, y=y + 12, text_anchor="middle")
    stem = el("line", x1=0, x2=0, y1=y + _CHIP, y2=above + rows * _ROW + 4, class_="stem")
    place = el("svg", stem, box, text, x=f"{fnum(100 * label.share)}%", overflow="visible")
    goal = f"#op-{label.first + 1}" if label.first + 1 in linked else "#operations"
    return el("a", el("title", words), place, href=goal, class_=f"chip {look}", aria_label=words)


def _stages(frame: Frame) -> list[Markup]:
    """Names of the stages, cut off where they do not fit; the charts are followed by a list of them."""
    found = []
    for name, low, high in frame.stages:
        x, wide = 100 * frame.at(low), 100 * (frame.at(high) - frame.at(low))
        text = el("text", name, x=4, y=12, class_="stage-name")
        title = el("title", f"stage {name}: step {low:,.0f} to {high:,.0f}")
        found.append(el("svg", title, text, x=f"{fnum(x)}%", width=f"{fnum(max(0.0, wide))}%", height=_STAGE - 2))
    return found


def kinds(frame: Frame) -> Sequence[str]:
    """Those of the operations, in a fixed order, for the legend."""
    known = {look for _, look, _ in frame.operations}
    undone = any(look.endswith("undone") for _, look, _ in frame.operations)
    return [name for name in ("architecture", "freezing", "settings") if name in known] + ["undone"] * undone
