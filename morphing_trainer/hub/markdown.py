"""Markdown from texts that others may have written: none of them is taken for markup, and none breaks a table."""

from __future__ import annotations

import re
from collections.abc import Sequence

from morphing_trainer.reporting.console import clean

_MARKUP = re.compile(r"([\\`*_{}\[\]|~$#!])")
_LONGEST = 120


def plain(text: object) -> str:
    """A text that shows as it is, on one line, in a paragraph or a cell."""
    shown = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", cut(shown))


def code(text: object) -> str:
    """The same in the type of code. A cell's border within it is escaped, as tables want it."""
    shown = cut(clean(text)).replace("`", "'").replace("|", "\\|")
    return f"`{shown}`" if shown else ""


def cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[str] = ()) -> list[str]:
    """A table, in columns of one width, so that its source can be read too.

    Args:
        columns: their headings.
        rows: cells that are Markdown by now.
        numbers: those columns that are set to the right.
    """
    if not rows:
        return []
    widths = [max(3, len(name), *(len(row[i]) for row in rows)) for i, name in enumerate(columns)]
    marks = ["-" * (w - 1) + ":" if name in numbers else "-" * w for name, w in zip(columns, widths, strict=True)]
    lines = []
    for row in (columns, marks, *rows):
        cells = [
            cell.rjust(w) if name in numbers else cell.ljust(w)
            for cell, name, w in zip(row, columns, widths, strict=True)
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
