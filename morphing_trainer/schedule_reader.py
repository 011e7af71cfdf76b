"""Reading schedules: every problem is found, located and explained, none stops the reading."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from morphing_trainer.errors import Problem, suggest
from morphing_trainer.operations import NAMES
from morphing_trainer.operations.base import whole
from morphing_trainer.operations.stages import AdvanceStage
from morphing_trainer.schedule_entry import Entry, Path, Place, Source, Terms
from morphing_trainer.schedule_fields import described, read_defaults, read_guard, read_trigger, shown, validated

END = "end"
"""`repeat: end` repeats to the end of the run."""

MOST_OPERATIONS = 10_000
"""What repeats may amount to, written out; a slip of the finger must cost neither time nor memory."""

_TERMS = tuple(Terms.model_fields)
_DEFAULTS = ("trigger_loss", "max_wait_iters", "when", "reevaluate", "guard")
_GROUP = ("repeat", "operations", "desc")


@dataclass(frozen=True)
class Reading:
    """What was read. Bad entries are left out.

    Attributes:
        entries: what is done a finite number of times, written out.
        cycle: what is repeated after that to the end of the run.
        source: where its list stands.
        problems: all of them, in the order of the document.
    """

    entries: tuple[Entry, ...]
    cycle: tuple[Entry, ...]
    source: Source
    problems: list[Problem]


@dataclass(frozen=True)
class _Item:
    """One item of the list: an operation or a group.

    Attributes:
        entries: the operations in it that can be used.
        problems: what is wrong with the others.
        size: number of its operations.
        repeat: how often it is done: a number, `END`, or None where it is written without.
        where: where its `repeat` stands, in words.
    """

    entries: list[Entry]
    problems: list[Problem]
    size: int = 1
    repeat: int | str | None = None
    where: str = field(default="", repr=False)

    def rounds(self, number: int) -> list[Entry]:
        """Its operations, written out `number` times."""
        return [
            replace(entry, place=replace(entry.place, round=count))
            for count in range(1, number + 1)
            for entry in self.entries
        ]


def read_schedule(data: Any, source: Source) -> Reading:
    """Read a document that is a list, or a mapping with `operations` and `defaults`."""
    problems: list[Problem] = []
    defaults: Mapping[str, Any] = {}
    if isinstance(data, Mapping):
        for key in data:
            if key not in ("operations", "defaults"):
                hint = suggest(str(key), ("operations", "defaults"))
                problems.append(Problem(source.where((key,)), f"unknown key {key!r}{hint}"))
        defaults = {} if (given := data.get("defaults")) is None else given
        if not isinstance(defaults, Mapping):
            where = source.where(("defaults",))
            problems.append(Problem(where, f"defaults must be a mapping, is {described(defaults)}"))
            defaults = {}
        for key in defaults:
            if key not in _DEFAULTS:
                where = source.where(("defaults", key), "defaults")
                problems.append(Problem(where, f"unknown key {key!r}{suggest(str(key), _DEFAULTS)}"))
        defaults, faults = read_defaults(defaults)
        for path, what in faults:
            label = ".".join(str(part) for part in path)
            problems.append(Problem(source.where(("defaults", *path), "defaults", label), what))
        if "operations" not in data:
            problems.append(Problem(source.where(()), "has no list of operations; write 'operations:' and the entries"))
        source = Source(source.name, source.lines, ("operations",))
        data = data.get("operations", [])
    if data is None:
        data = []
    if not isinstance(data, Sequence) or isinstance(data, str | bytes):
        what = f"a schedule is a list of operations (or a mapping with 'operations:'), this is {described(data)}"
        return Reading((), (), source, [*problems, Problem(source.where(source.base), what)])
    return _read_list(data, source, defaults, problems)


def _read_list(data: Sequence[Any], source: Source, defaults: Mapping[str, Any], problems: list[Problem]) -> Reading:
    entries: list[Entry] = []
    cycle: tuple[Entry, ...] = ()
    total = 0
    for index, data_item in enumerate(data):
        item = _read_item(data_item, index, source, defaults)
        problems += item.problems
        if item.repeat == END:
            cycle = tuple(item.entries)
            if index < len(data) - 1:
                what = f"must be the last item of the list: entry {index + 2} could never be reached"
                problems.append(Problem(item.where, f"{what}; give a number of times, or move it to the end"))
            continue
        number = 1 if item.repeat is None else int(item.repeat)
        # A group that is empty takes time, too.
        if item.repeat is not None and total + number * max(1, item.size) > MOST_OPERATIONS:
            what = f"makes more than {MOST_OPERATIONS:,} operations in all, written out"
            problems.append(Problem(item.where, f"{what}; repeat less often, or to the end"))
            continue
        total += number * item.size
        entries += item.entries if item.repeat is None else item.rounds(number)
    return Reading(tuple(entries), cycle, source, problems)


def _read_item(item: Any, index: int, source: Source, defaults: Mapping[str, Any]) -> _Item:
    place = Place(index)
    if not isinstance(item, Mapping) or not ("repeat" in item or "operations" in item):
        entry, problems = _read_entry(item, place, source, defaults)
        return _Item([entry] if entry else [], problems)
    if "operations" in item or "name" not in item:
        name, size = None, len(item["operations"]) if isinstance(item.get("operations"), Sequence) else 0
        entries, problems = _read_group(item, place, source, defaults)
    else:
        name, size = item["name"] if item["name"] in tuple(NAMES) else None, 1
        alone = {key: value for key, value in item.items() if key != "repeat"}
        entry, problems = _read_entry(alone, place, source, defaults, repeats=True)
        entries = [entry] if entry else []
    where = source.entry(place, name, "repeat")
    repeat, what = _read_repeat(item)
    return _Item(entries, [*problems, *([Problem(where, what)] if what else [])], size, repeat, where)


def _read_repeat(item: Mapping[Any, Any]) -> tuple[int | str | None, str]:
    """How often an item repeats, and what is wrong with that."""
    if "repeat" not in item:
        return None, "is missing; write how many times, or end"
    value = whole(item["repeat"])
    if isinstance(value, str) and value == END:
        return END, ""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value, ""
    return None, f"must be a whole number from 1, or the word {END}, is {shown(value)}"


def _read_group(
    item: Mapping[Any, Any], place: Place, source: Source, defaults: Mapping[str, Any]
) -> tuple[list[Entry], list[Problem]]:
    """The operations of a group, once."""
    problems = [
        Problem(source.entry(place, None, key), f"unknown key {key!r}{suggest(str(key), _GROUP)}")
        for key in item
        if key not in _GROUP
    ]
    desc, members = item.get("desc"), item.get("operations")
    if desc is not None and not isinstance(desc, str):
        problems.append(Problem(source.entry(place, None, "desc"), f"must be a valid string, is {shown(desc)}"))
    elif desc is not None:
        defaults = {**defaults, "desc": desc}  # of the members that have none of their own
    what = ""
    if "operations" not in item:
        what = "is missing; list the operations that repeat, or give the 'name' of a single one"
    elif not isinstance(members, Sequence) or isinstance(members, str | bytes):
        what = f"must be a list of operations, is {described(members)}"
    elif not members:
        what = "must have at least 1 item, has 0"
    if what:
        return [], [*problems, Problem(source.entry(place, None, "operations"), what)]
    entries: list[Entry] = []
    for part, member in enumerate(members or ()):
        inside = replace(place, part=part)
        if isinstance(member, Mapping) and ("repeat" in member or "operations" in member):
            key = "repeat" if "repeat" in member else "operations"
            what = "a group cannot stand inside another; write out the inner one"
            problems.append(Problem(source.entry(inside, None, key), what))
            continue
        entry, found = _read_entry(member, inside, source, defaults, repeats=True)
        problems += found
        if entry:
            entries.append(entry)
    return entries, problems


def _read_entry(
    item: Any, place: Place, source: Source, defaults: Mapping[str, Any], *, repeats: bool = False
) -> tuple[Entry | None, list[Problem]]:
    if not isinstance(item, Mapping):
        what = f"must be a mapping with 'name' and 'value', is {described(item)}"
        return None, [Problem(source.entry(place, None), what)]
    name = item.get("name")
    if not isinstance(name, str) or name not in NAMES:
        if name is None:
            like = [key for key in item if difflib.get_close_matches("name", [str(key).lower()])]
            if like and "name" not in item:
                what = f"unknown key {like[0]!r}; did you mean 'name'?"
                return None, [Problem(source.entry(place, None, like[0]), what)]
            what = f"has no 'name'{suggest('', NAMES)}"
        else:
            what = f"unknown operation {name!r}{suggest(str(name), NAMES)}"
        return None, [Problem(source.entry(place, None, "name"), what)]

    def located(path: Path, what: str) -> Problem:
        return Problem(source.entry(place, name, *path), what)

    kind = NAMES[name]
    options = set(kind.model_fields)
    valid = [*options, *_TERMS, "when", *(["repeat"] if place.part is None else [])]
    problems = [located((key,), f"unknown key {key!r}{suggest(str(key), valid)}") for key in item if key not in valid]
    fields = {key: item[key] for key in item if key in options} | {"name": kind.model_fields["name"].default}
    operation, found = validated(kind, fields)
    problems += [located(path, what) for path, what in found]
    written = {key: item[key] for key in item if key in _TERMS}
    plain = {key: value for key, value in defaults.items() if key in _TERMS}
    if "when" in item:
        plain = {key: value for key, value in plain.items() if key not in ("trigger_loss", "max_wait_iters")}
    elif {"trigger_loss", "max_wait_iters"} & set(written):
        defaults = {key: value for key, value in defaults.items() if key != "when"}
    given = plain | written
    guard, found = read_guard(given.get("guard"))
    problems += [located(path, what) for path, what in found]
    if guard is not None and kind is AdvanceStage:
        if "guard" in written:
            what = "another stage has another evaluation set, so that losses before and after cannot be compared"
            problems.append(located(("guard",), f"{what}; leave it out"))
        guard = None
    terms, found = validated(Terms, given | {"guard": guard})
    problems += [located(path, what) for path, what in found]
    if repeats and item.get("completed") is True:
        what = "what repeats cannot be completed as a whole; write out the rounds that are done"
        problems.append(located(("completed",), what))
    when = item.get("when", defaults.get("when"))
    trigger, found = read_trigger(when, terms, has_when="when" in item or "when" in defaults)
    problems += [located(path, what) for path, what in found]
    if problems or operation is None or terms is None or trigger is None:
        return None, problems
    return Entry(operation, trigger, terms, when=when is not None, place=place), []
