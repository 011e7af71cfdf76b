"""Runs against each other, as tables: how they stand, their losses at equal cost, and what the target loss cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from morphing_trainer.reporting.console import clean, count, duration, loss_text, scaled_text
from morphing_trainer.reporting.contest import Contest, Crossing, Entrant
from morphing_trainer.reporting.layout import aligned


class Sheet(NamedTuple):
    """One table: every row begins with a run's name; `lead` are the cells, by row, that are ahead of the others."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    lead: Sequence[Sequence[bool]]


def contest_lines(found: Contest) -> list[str]:
    """Plain lines. What is ahead of the others has a `*`."""
    lines: list[str] = []
    for sheet in sheets(found):
        starred = [
            [f"{cell} *" if ahead else cell for cell, ahead in zip(row, lead, strict=True)]
            for row, lead in zip(sheet.rows, sheet.lead, strict=True)
        ]
        lines += [sheet.title, *aligned(sheet.header, starred), ""]
    return lines + notes(found)


def contest_view(found: Contest) -> RenderableType:
    """The same for a terminal; what is ahead is green."""
    parts: list[RenderableType] = []
    for sheet in sheets(found):
        table = Table(title=sheet.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        table.padding = (0, 1, 0, 0)
        for number, header in enumerate(sheet.header):
            table.add_column(header, justify="right" if number else "left", overflow="fold")
        for row, lead in zip(sheet.rows, sheet.lead, strict=True):
            table.add_row(
                *(Text(cell, style="bold green" if ahead else "") for cell, ahead in zip(row, lead, strict=True))
            )
        parts.append(table)
    return Group(*parts, *(Text(note) for note in notes(found)))


def sheets(found: Contest) -> list[Sheet]:
    """The tables that there is something for."""
    made = [_standings(found)]
    if found.equal:
        made.append(_equal(found))
    if found.target is not None:
        made.append(_reached(found))
    return made


def _standings(found: Contest) -> Sheet:
    header = ("run", "parameters", *_AXES_IN_WORDS.values(), f"last {_short(found)}", "best")
    rows = []
    for entrant in found.entrants:
        size = "-" if entrant.parameters is None else count(entrant.parameters)
        ends = [amount(axis, entrant.ends[axis]) if axis in entrant.ends else "-" for axis in _AXES_IN_WORDS]
        last = entrant.losses[-1] if entrant.losses else None
        rows.append((clean(entrant.name), size, *ends, loss_text(last), loss_text(entrant.best)))
    kept = [i for i, _ in enumerate(header) if not (2 <= i < 6) or list(_AXES_IN_WORDS)[i - 2] in found.axes]
    rows = [tuple(row[i] for i in kept) for row in rows]
    return Sheet(f"{len(rows)} runs", [header[i] for i in kept], rows, [[False] * len(kept) for _ in rows])


def _equal(found: Contest) -> Sheet:
    """The lowest loss is ahead."""
    axes = [axis for axis in found.axes if axis in found.equal]
    header = ("run", *(f"{amount(axis, found.equal[axis], long=True)}" for axis in axes))
    losses = [[entrant.at(axis, found.equal[axis]) for axis in axes] for entrant in found.entrants]
    least = [min((row[i] for row in losses if row[i] is not None), default=None) for i in range(len(axes))]  # type: ignore[type-var]
    rows = [(clean(entrant.name), *map(loss_text, row)) for entrant, row in zip(found.entrants, losses, strict=True)]
    lead = [[False, *(value is not None and value == least[i] for i, value in enumerate(row))] for row in losses]
    return Sheet(f"{found.words} after equal", header, rows, lead)


def _reached(found: Contest) -> Sheet:
    """What came first is ahead."""
    header = ("run", *(_AXES_IN_WORDS[axis] for axis in found.axes))
    rows = [
        (clean(entrant.name), *(_crossed(axis, entrant, found) for axis in found.axes)) for entrant in found.entrants
    ]
    lead = [[False, *(entrant.name in found.first.get(axis, ()) for axis in found.axes)] for entrant in found.entrants]
    return Sheet(f"{found.words} {loss_text(found.target)} reached after", header, rows, lead)


def _crossed(axis: str, entrant: Entrant, found: Contest) -> str:
    there = entrant.reached.get(axis)
    if there is None:
        return "never" if axis in entrant.points else "-"
    if there.from_start:
        return f"<= {amount(axis, there.x)}"
    if there.ratio is None or there.ratio == 1:
        return amount(axis, there.x)
    least = ">= " if {*found.had(axis)} & {*found.first.get(axis, ())} else ""  # the first one was sooner than is known
    return f"{amount(axis, there.x)} ({least}{ratio_text(there.ratio)})"


def notes(found: Contest) -> list[str]:
    """Which came first, and by how much; and what else must be known to read the tables."""
    told = [line for axis in found.axes if (line := _winner(found, axis))]
    if apart := [_AXES_IN_WORDS[axis] for axis in found.axes if axis not in found.equal and _known(found, axis) > 1]:
        told.append(f"after equal {', '.join(apart)}: no loss is known of all; one begins where another has ended")
    if found.target is not None and not found.first:
        told.append("Fewer than two runs have reached that loss; choose another by --at-loss.")
    if found.target is None:
        told.append("Fewer than two runs have logged such a loss, so none can be said to be first.")
    elif any(there.from_start for entrant in found.entrants for there in entrant.reached.values()):
        told.append("<=: the first loss that the run has logged was as low already.")
    return [*told, *(clean(remark) for remark in found.remarks)]


def _known(found: Contest, axis: str) -> int:
    return sum(axis in entrant.points for entrant in found.entrants)


def _winner(found: Contest, axis: str) -> str:
    names = found.first.get(axis, ())
    if not names:
        return ""
    by = f"by {_AXES_IN_WORDS[axis]}: "
    if had := found.had(axis):
        return clean(f"{by}{' and '.join(had)} had it in the first loss logged; when before is not known")
    if len(names) > 1:
        return clean(f"{by}{' and '.join(names)} at once")
    others: list[tuple[Crossing, str]] = [
        (entrant.reached[axis], entrant.name)
        for entrant in found.entrants
        if axis in entrant.reached and entrant.name not in names
    ]
    second, name = min(others, key=lambda other: other[0].x)
    if second.ratio is None:
        behind = f", then {name}"
    elif second.ratio < 1.005:
        behind = f", {name} less than 1 % behind"
    else:
        behind = f", {name} needed {ratio_text(second.ratio)} as {'much' if axis == 'seconds' else 'many'}"
    return clean(f"{by}{names[0]} was first{behind}")


_AXES_IN_WORDS = {"steps": "steps", "tokens": "tokens", "seconds": "time", "flops": "FLOPs"}


def amount(axis: str, x: float, *, long: bool = False) -> str:
    """So much of an axis: `1,200`, `1.20M`, `4 min 10 s`, `3.10 T`; `long` says of what."""
    if axis == "seconds":
        return duration(x)
    if axis == "flops":
        return scaled_text(x) + ("FLOP" if long else "")
    if axis == "steps":
        return f"{x:,.0f}" + (" steps" if long else "")
    return count(int(x)) + (" tokens" if long else "")


def ratio_text(ratio: float | None) -> str:
    """`1.31x`."""
    return "" if ratio is None else f"{ratio:.2f}x" if ratio < 9.995 else f"{ratio:,.0f}x"


def _short(found: Contest) -> str:
    return "training loss" if found.loss == "loss" else "evaluation"
