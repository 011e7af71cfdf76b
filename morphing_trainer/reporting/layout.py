"""How tables are set: in columns that fit the terminal, or as plain lines for a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.table import Table
from rich.text import Text

WIDE = 110  # columns of a terminal from which a table puts every column side by side
_LONGEST_WORD = 27  # the longest name of an operation


@dataclass(frozen=True)
class Form:
    """`columns`: (header, kind); kind is `text` (may wrap), `fixed`, or `number` (fixed, right-aligned)."""

    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[str | Text]]


@dataclass(frozen=True)
class Responsive:
    """A table in its `wide` form on a terminal of `least` columns or more, else in a `narrow` one of fewer columns."""

    title: str
    wide: Form
    narrow: Form
    caption: str | None = None
    least: int = WIDE

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        form = self.wide if options.max_width >= self.least else self.narrow
        table = Table(title=self.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        table.padding, table.caption, table.caption_justify = (0, 1, 0, 0), self.caption, "left"
        pinned = _pinned(form, options.max_width)
        for i, (header, kind) in enumerate(form.columns):
            justify: JustifyMethod = "right" if kind == "number" else "left"
            least = _least(form, i) if kind == "text" else None  # else names are broken where room is short
            width = least if i in pinned else None
            table.add_column(
                header, no_wrap=kind != "text", justify=justify, overflow="fold", min_width=least, width=width
            )
        for row in form.rows:
            table.add_row(
                *(Text(cell) if isinstance(cell, str) else cell for cell in row)
            )  # `Text`: `[0]` is no markup
        yield table


def _least(form: Form, column: int) -> int:
    """Characters that keep the words of a column whole."""
    return min(_LONGEST_WORD, max((len(word) for row in form.rows for word in str(row[column]).split()), default=0))


def _pinned(form: Form, width: int) -> set[int]:
    """Columns of text that get their least width, because an even share of `width` would be less.

    Rich cuts the widest columns to one level; a column that needs more then pushes the last one off the screen.
    """
    cells = [[header, *(str(row[i]) for row in form.rows)] for i, (header, _) in enumerate(form.columns)]
    natural = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in cells]
    flexible = {i for i, (_, kind) in enumerate(form.columns) if kind == "text"}
    room = width - 2 * len(natural) + 1 - sum(size for i, size in enumerate(natural) if i not in flexible)
    pinned: set[int] = set()
    while flexible:
        level = max(
            (n for n in range(max(0, room) + 1) if sum(min(natural[i], n) for i in flexible) <= room), default=0
        )
        tight = {i for i in flexible if _least(form, i) > level}
        if not tight:
            return pinned
        room -= sum(_least(form, i) for i in tight)
        flexible, pinned = flexible - tight, pinned | tight
    return pinned if room >= 0 else set()  # what has no room at all cannot be helped


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns set with spaces; empty columns are left out."""
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    widths = [max(len(line[i]) for line in (header, *rows)) for i in kept]
    return [
        "  ".join(line[i].ljust(width) for i, width in zip(kept, widths, strict=True)).rstrip()
        for line in (header, *rows)
    ]


def in_lines(changes: str, per_line: int) -> str:
    """Breaks between changes, because a break inside one ("accumulation 1 ->") is hard to read."""
    parts = changes.split(", ")
    return ",\n".join(", ".join(parts[i : i + per_line]) for i in range(0, len(parts), per_line))


def stacked(title: Text, *below: str) -> Text:
    return Text("\n").join([title, *(Text(line, style="dim") for line in below if line)])
