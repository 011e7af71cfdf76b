"""The journal of a run as tables: what its operations did, those that were undone among them, and all else it tells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from morphing_trainer.reporting.adapters import adapter_changes
from morphing_trainer.reporting.console import clean, loss_text, operation_text
from morphing_trainer.reporting.layout import Form, Responsive, aligned, in_lines, stacked
from morphing_trainer.reporting.records import Record
from morphing_trainer.reporting.tables import LATER, OPERATIONS, how_many, moments_text, operation_rows
from morphing_trainer.reporting.undone import undone_lines

Event = Mapping[str, Any]

COLUMNS = (*OPERATIONS, "moments")
_KINDS = ("number", "text", "text", "text", "fixed", "fixed", "number", "text")
_WIDE = 135  # columns from which all of the table stands side by side
_DULL = frozenset({"event", "step", "time", "spec", "schedule", "entry", "record", "settings", "weights", "events"})
"""Facts of an event that are long, or stand elsewhere in the table."""


@dataclass(frozen=True)
class Change:
    """One operation.

    Attributes:
        record: what it did.
        time: when, as the journal has it.
        later: the loss at the first evaluation after it, where that came after more training.
        undone: the event that tells how it was rolled back, None if it stands.
    """

    record: Record
    time: str = ""
    later: float | None = None
    undone: Event | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for machines."""
        gone = None
        if self.undone is not None:
            gone = {name: self.undone.get(name) for name in ("until", "before", "loss", "limit", "reason")}
        return {
            "event": "operation",
            "time": self.time,
            **self.record.to_dict(),
            "evaluated_later": self.later,
            "rolled_back": gone,
        }


def journal_lines(changes: Sequence[Change]) -> list[str]:
    """A heading and a line for each operation."""
    if not changes:
        return ["No operation was applied."]
    lines = [_heading(changes), *aligned(COLUMNS, journal_rows(changes))]
    return lines + ([LATER] if _late(changes) else []) + _undone(changes)


def journal_table(changes: Sequence[Change]) -> RenderableType:
    """The same for a terminal."""
    if not changes:
        return Text("No operation was applied.")
    wide, narrow = [], []
    for change, row in zip(changes, journal_rows(changes), strict=True):
        step, name, trigger, changed, size, loss, took, moments = row
        style = "strike dim" if change.undone else "cyan"
        wide.append(
            (step, Text(name, style=style), trigger, in_lines(changed, 1), size, loss, took, in_lines(moments, 1))
        )
        below = stacked(
            Text(name, style=style), trigger, *in_lines(changed, 1).split("\n"), f"moments {moments}" if moments else ""
        )
        narrow.append(
            (step, below, size.replace(" -> ", " ->\n"), loss.replace(" -> ", " ->\n").replace("next ", "next\n"), took)
        )
    columns = list(zip(COLUMNS, _KINDS, strict=True))
    few = [columns[i] for i in (0, 1, 4, 5, 6)]
    caption = "\n".join([*([LATER] if _late(changes) else []), *_undone(changes)]) or None
    adapted = any(adapter_changes(change.record.before, change.record.after) for change in changes)
    return Responsive(_heading(changes), Form(columns, wide), Form(few, narrow), caption, _WIDE + 25 * adapted)


def _heading(changes: Sequence[Change]) -> str:
    undone = sum(change.undone is not None for change in changes)
    text = f"{how_many(len(changes) - undone)} applied"
    return f"{text}, {undone} undone" if undone else text


def journal_rows(changes: Sequence[Change]) -> list[tuple[str, ...]]:
    """Of each operation what `COLUMNS` names."""
    rows: list[tuple[str, ...]] = []
    for change in changes:
        later = {} if change.later is None else {change.record.index: change.later}
        (row,) = operation_rows([change.record], later)
        step, name, trigger, changed, size, loss, took = row
        if change.undone is not None:
            name = f"{name} (undone)"
            loss = (
                f"{loss_text(_number(change.undone.get('before')))} -> {loss_text(_number(change.undone.get('loss')))}"
            )
        rows.append((step, name, trigger, changed, size, loss, took, moments_text(change.record.moments)))
    return rows


def _late(changes: Sequence[Change]) -> bool:
    return any(change.later is not None and change.undone is None for change in changes)


def _undone(changes: Sequence[Change]) -> list[str]:
    return undone_lines([change.undone for change in changes if change.undone is not None])


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


# All events -----------------------------------------------------------------------------------------------------------

EVENTS = ("step", "time", "event", "what")


def events_lines(events: Iterable[Event]) -> list[str]:
    """A line for each event."""
    rows = event_rows(events)
    return aligned(EVENTS, rows) if rows else ["The journal is empty."]


def events_table(events: Iterable[Event]) -> RenderableType:
    """The same for a terminal."""
    rows = event_rows(events)
    if not rows:
        return Text("The journal is empty.")
    form = Form(list(zip(EVENTS, ("number", "fixed", "fixed", "text"), strict=True)), rows)
    narrow = [(step, stacked(Text(name, style="cyan"), time), what) for step, time, name, what in rows]
    few = [("step", "number"), ("event", "fixed"), ("what", "text")]
    many = f"{len(rows)} events" if len(rows) > 1 else "1 event"
    return Responsive(many, form, Form(few, narrow))


def event_rows(events: Iterable[Event]) -> list[tuple[str, ...]]:
    return [
        (
            f"{event['step']:,}",
            clean(str(event.get("time", ""))[:19].replace("T", " ")),
            clean(event["event"]),
            _what(event),
        )
        for event in events
    ]


def _what(event: Event) -> str:
    """What an event tells, on one line."""
    match event["event"]:
        case "start":
            seed, listed = event.get("seed"), event.get("schedule")
            return f"seed {seed}, {how_many(len(listed) if isinstance(listed, list) else 0)} in its schedule"
        case "operation":
            record = event["record"]
            return clean(f"{operation_text(record['operation'], record['value'])}: {record['trigger']}")
        case "stage":
            return clean(f"{event.get('name')} begins")
        case "override":
            return clean(f"{event.get('name')}: {_short(event.get('before'))} -> {_short(event.get('now'))}")
        case "rolled_back":
            return clean(undone_lines([event])[-1].partition(": ")[2])
    facts = [f"{name.replace('_', ' ')} {_short(value)}" for name, value in event.items() if name not in _DULL]
    return clean(", ".join(facts))


def _short(value: Any, most: int = 60) -> str:
    if isinstance(value, float):
        return loss_text(value)
    text = "" if value is None else str(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
