"""The tables of a report: operations, other events, the schedule, the arguments, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from morphing_trainer.reporting.adapters import adapters_text
from morphing_trainer.reporting.console import clean, count, duration, operation_text, rate_text, size_text
from morphing_trainer.reporting.growth import kind_of
from morphing_trainer.reporting.journal import event_rows, journal_rows
from morphing_trainer.reporting.report.figures import ARROW
from morphing_trainer.reporting.report.story import Facts, Story
from morphing_trainer.reporting.report.text import cut
from morphing_trainer.reporting.tables import LATER
from morphing_trainer.reporting.times import PARTS, shares
from morphing_trainer.reporting.undone import undone_lines

MOST_OPERATIONS, MOST_EVENTS, MOST_ENTRIES = 300, 200, 300
MOST_TEXT = 300
"""Characters of a cell."""
HEADINGS = ("step", "operation", "trigger", f"before {ARROW} after", "parameters", "evaluation loss", "took", "moments")
_Row = TypeVar("_Row")
_CONDITIONS = ("when", "trigger_loss", "max_wait_iters")
_WORDS = {"when": "{}", "trigger_loss": "loss below {}", "max_wait_iters": "after {} steps"}


class Operation(NamedTuple):
    """A row of the journal; `number` from 1, `kind` as in the charts, `cells` as `reporting.journal.COLUMNS` names."""

    number: int
    kind: str
    undone: bool
    cells: Sequence[str]
    note: str


class Entry(NamedTuple):
    """A row of the schedule."""

    number: str
    operation: str
    when: str
    options: str
    became: str


class Part(NamedTuple):
    """Of the time: seconds in words, and a share of 0 to 1."""

    name: str
    took: str
    share: float


def ends(rows: Sequence[_Row], most: int) -> tuple[Sequence[_Row], Sequence[_Row], int]:
    """The first and the last rows, and how many between them are left out of a table of at most `most`."""
    if len(rows) <= most:
        return rows, (), 0
    half = most // 2
    return rows[:half], rows[-half:], len(rows) - 2 * half


def operations(story: Story) -> list[Operation]:
    """All operations in the order in which they were applied."""
    found = []
    for number, (change, cells) in enumerate(zip(story.changes, journal_rows(story.changes), strict=True), 1):
        record = change.record
        said = undone_lines([change.undone])[-1].partition(": ")[2] if change.undone is not None else ""
        notes = [text for text in (record.desc, record.note, record.warning, said) if text]
        shown = [cut(cell.replace(" -> ", f" {ARROW} "), MOST_TEXT) for cell in cells]
        note = cut("; ".join(clean(str(text)) for text in notes).replace(" -> ", f" {ARROW} "), MOST_TEXT)
        found.append(Operation(number, kind_of(record), change.undone is not None, shown, note))
    return found


def later(story: Story) -> str:
    """What the asterisk at a loss means; empty if there is none."""
    return LATER if any(change.later is not None and change.undone is None for change in story.changes) else ""


def events(story: Story) -> list[Sequence[str]]:
    """(step, time, event, what) of all that is no operation."""
    others = [event for event in story.events if event["event"] not in ("operation", "analysis")]
    return [[cut(cell, MOST_TEXT) for cell in row] for row in event_rows(others)]


def schedule(story: Story) -> list[Entry]:
    """The schedule as the run began with it, and what became of each entry."""
    listed = next((event.get("schedule") for event in story.events if event["event"] == "start"), None)
    if not isinstance(listed, list):
        return []
    became = {change.record.index: change for change in story.changes}
    found = []
    for index, entry in enumerate(listed):
        if not isinstance(entry, Mapping):
            continue
        if "repeat" in entry:
            again = entry.get("operations")
            rows = [each for each in again if isinstance(each, Mapping)] if isinstance(again, list) else []
            done = sum(number >= index for number in became)
            found += [_entry("\u21bb", each, f"repeated to the end: {done:,} applied in all") for each in rows]
            continue
        change = became.get(index)
        what = "not applied" if change is None else f"step {change.record.step:,}"
        found.append(_entry(str(index + 1), entry, f"{what}, undone" if change and change.undone is not None else what))
    return found


def _entry(number: str, entry: Mapping[str, Any], became: str) -> Entry:
    named = ("name", "value", *_CONDITIONS)
    when = " or ".join(_WORDS[name].format(written(entry[name])) for name in _CONDITIONS if name in entry)
    others = ", ".join(f"{name}: {written(value)}" for name, value in entry.items() if name not in named)
    operation = operation_text(str(entry.get("name")), entry.get("value"))
    return Entry(number, cut(operation, MOST_TEXT), cut(when, MOST_TEXT), cut(others, MOST_TEXT), became)


def arguments(story: Story) -> list[tuple[str, list[tuple[str, str]], list[tuple[str, str]]]]:
    """Of each group of arguments: its name, those that differ from their defaults, and all others."""
    told, changed = story.setup.get("arguments"), story.setup.get("changed")
    found = []
    for group, values in list(told.items())[:20] if isinstance(told, Mapping) else ():
        if not isinstance(values, Mapping):
            continue
        names = changed.get(group) if isinstance(changed, Mapping) else None
        differ = {str(name) for name in names} if isinstance(names, list) else set()
        listed = list(values.items())[:500]
        rows = [(cut(str(name), 80), cut(written(value), MOST_TEXT)) for name, value in listed]
        others = [row for row in rows if row[0] not in differ]
        found.append((cut(str(group), 80), [row for row in rows if row[0] in differ], others))
    return found


def written(value: Any) -> str:
    """A value of a file on one line, as YAML has it."""
    if isinstance(value, Mapping):
        inside = ", ".join(f"{clean(name)}: {written(entry)}" for name, entry in value.items())
        return f"{{{inside}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return rate_text(value) if isinstance(value, float) and 0 < abs(value) < 0.001 else clean(value)


def parts(story: Story) -> list[Part]:
    """Where the time went, the longest first."""
    found = shares(story.timing)
    order = {name: number for number, name in enumerate(PARTS)}
    listed = sorted(found, key=lambda name: (-found[name], order.get(name, len(order)), name))
    return [Part(name, duration(story.timing[name]), found[name]) for name in listed]


def facts(now: Facts, before: Facts) -> list[tuple[str, str, bool]]:
    """(name, text, whether it is another one than before) of a network."""
    found = [("shape", _shape(now), _shape(now) != _shape(before))]
    if "parameters" in now:
        found.append(("parameters", count(now["parameters"]), now["parameters"] != before.get("parameters")))
        found.append(("trained", _trained(now), _trained(now) != _trained(before)))
    if (text := adapters_text(now)) or adapters_text(before):
        found.append(("LoRA", text or "none", text != adapters_text(before)))
    return [row for row in found if row[1]]


def _shape(facts: Facts) -> str:
    return size_text(facts).replace(" x ", " \u00d7 ")


def _trained(facts: Facts) -> str:
    whole, free = facts.get("parameters"), facts.get("trainable")
    if not whole or free is None:
        return ""
    return "all" if free == whole else f"{count(free)} ({100 * free / whole:.3g} %)"
