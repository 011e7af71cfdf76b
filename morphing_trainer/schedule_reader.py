"""Reading schedule entries: every problem is found, located and explained, none stops the reading."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from morphing_trainer.errors import Problem, suggest
from morphing_trainer.operations import NAMES, Operation
from morphing_trainer.operations.base import Steps
from morphing_trainer.triggers import COMPOSITE, KINDS, VALUED, AnyOf, LossBelow, Plateau, Trigger, Waited

Path = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Source:
    """Where a schedule was read from, to locate problems. `base` is the path of the list inside the document."""

    name: str
    lines: Mapping[Path, int] = field(default_factory=dict)
    base: Path = ()

    def where(self, path: Path, *labels: str) -> str:
        line = next((self.lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self.lines), None)
        place = self.name if line is None else f"{self.name}:{line}"
        return ": ".join([place, ", ".join(labels)]) if labels else place

    def entry(self, index: int, operation: Any, *fields: str | int) -> str:
        """Where field `fields` of entry `index` stands, in words."""
        labels = [f"entry {index + 1}" + (f" ({operation})" if operation else "")]
        if fields:
            labels.append(".".join(str(part) for part in fields))
        return self.where((*self.base, index, *fields), *labels)


class Terms(BaseModel):
    """What may stand in an entry beside the operation's own fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    trigger_loss: Annotated[float, Field(ge=0)] | None = None
    max_wait_iters: Steps | None = None
    reevaluate: bool = False
    desc: str | None = None
    completed: bool = False


@dataclass(frozen=True)
class Entry:
    """One operation of a schedule and when it is due.

    Attributes:
        operation: what is done.
        trigger: when.
        terms: the entry's other fields as they were written.
        when: whether the trigger was written as a `when:` (else as `trigger_loss` and `max_wait_iters`).
    """

    operation: Operation
    trigger: Trigger
    terms: Terms
    when: bool = False

    @property
    def reevaluate(self) -> bool:
        return self.terms.reevaluate

    @property
    def desc(self) -> str | None:
        return self.terms.desc

    @property
    def completed(self) -> bool:
        return self.terms.completed

    def to_dict(self) -> dict[str, Any]:
        terms = self.terms.model_dump(exclude_defaults=True)
        when = {"when": self.trigger.to_data()} if self.when else {}
        return {**self.operation.to_dict(), **when, **terms}


_TERMS = tuple(Terms.model_fields)
_DEFAULTS = ("trigger_loss", "max_wait_iters", "when", "reevaluate")


def read_entries(data: Any, source: Source) -> tuple[list[Entry], Source, list[Problem]]:
    """Entries of a document that is a list, or a mapping with `operations` and `defaults`. Bad entries are left out."""
    problems: list[Problem] = []
    defaults: Mapping[str, Any] = {}
    if isinstance(data, Mapping):
        for key in data:
            if key not in ("operations", "defaults"):
                hint = suggest(str(key), ("operations", "defaults"))
                problems.append(Problem(source.where((key,)), f"unknown key {key!r}{hint}"))
        defaults = data.get("defaults") or {}
        if not isinstance(defaults, Mapping):
            problems.append(Problem(source.where(("defaults",)), f"defaults must be a mapping, is {_kind(defaults)}"))
            defaults = {}
        for key in defaults:
            if key not in _DEFAULTS:
                where = source.where(("defaults", key), "defaults")
                problems.append(Problem(where, f"unknown key {key!r}{suggest(str(key), _DEFAULTS)}"))
        if "operations" not in data:
            problems.append(Problem(source.where(()), "has no list of operations; write 'operations:' and the entries"))
        source = Source(source.name, source.lines, ("operations",))
        data = data.get("operations", [])
    if data is None:
        data = []
    if not isinstance(data, Sequence) or isinstance(data, str | bytes):
        what = f"a schedule is a list of operations (or a mapping with 'operations:'), this is {_kind(data)}"
        return [], source, [*problems, Problem(source.where(source.base), what)]
    entries: list[Entry] = []
    for index, item in enumerate(data):
        entry, found = _read_entry(item, index, source, defaults)
        problems += found
        if entry:
            entries.append(entry)
    return entries, source, problems


def _read_entry(
    item: Any, index: int, source: Source, defaults: Mapping[str, Any]
) -> tuple[Entry | None, list[Problem]]:
    if not isinstance(item, Mapping):
        what = f"must be a mapping with 'name' and 'value', is {_kind(item)}"
        return None, [Problem(source.entry(index, None), what)]
    name = item.get("name")
    if not isinstance(name, str) or name not in NAMES:
        if name is None:
            what = f"has no 'name'{suggest('', NAMES)}"
        else:
            what = f"unknown operation {name!r}{suggest(str(name), NAMES)}"
        return None, [Problem(source.entry(index, None, "name"), what)]

    def located(path: Path, what: str) -> Problem:
        return Problem(source.entry(index, name, *path), what)

    kind = NAMES[name]
    options = set(kind.model_fields)
    valid = [*options, *_TERMS, "when"]
    problems = [located((key,), f"unknown key {key!r}{suggest(str(key), valid)}") for key in item if key not in valid]
    fields = {key: item[key] for key in item if key in options} | {"name": kind.model_fields["name"].default}
    operation, found = _validated(kind, fields)
    problems += [located(path, what) for path, what in found]
    written = {key: item[key] for key in item if key in _TERMS}
    plain = {key: value for key, value in defaults.items() if key in _TERMS}
    if "when" in item:
        plain = {key: value for key, value in plain.items() if key not in ("trigger_loss", "max_wait_iters")}
    elif {"trigger_loss", "max_wait_iters"} & set(written):
        defaults = {key: value for key, value in defaults.items() if key != "when"}
    terms, found = _validated(Terms, plain | written)
    problems += [located(path, what) for path, what in found]
    when = item.get("when", defaults.get("when"))
    trigger, found = _read_trigger(when, terms, has_when="when" in item or "when" in defaults)
    problems += [located(path, what) for path, what in found]
    if problems or operation is None or terms is None or trigger is None:
        return None, problems
    return Entry(operation, trigger, terms, when=when is not None), []


def _read_trigger(when: Any, terms: Terms | None, has_when: bool) -> tuple[Trigger | None, list[tuple[Path, str]]]:
    if terms is None:
        return None, []
    plain: list[Trigger] = []
    if terms.trigger_loss is not None:
        plain.append(LossBelow(value=terms.trigger_loss))
    if terms.max_wait_iters is not None:
        plain.append(Waited(value=terms.max_wait_iters))
    if has_when:
        if plain:
            return None, [(("when",), "stands beside trigger_loss or max_wait_iters; give one or the other")]
        return _read_when(when, ("when",))
    if not plain:
        return None, [((), "has no trigger; give trigger_loss or max_wait_iters or both, or when: {...}")]
    return AnyOf(parts=tuple(plain)) if len(plain) > 1 else plain[0], []


def _read_when(data: Any, path: Path) -> tuple[Trigger | None, list[tuple[Path, str]]]:
    """A trigger from `{kind: value}`, nested under `all` and `any`."""
    if not isinstance(data, Mapping) or len(data) != 1:
        what = "a mapping with several keys; join them with 'all: [...]' or 'any: [...]'"
        is_wide = isinstance(data, Mapping) and len(data) > 1
        return None, [(path, f"must be one condition such as {{at_step: 500}}, is {what if is_wide else _kind(data)}")]
    ((kind, value),) = data.items()
    path = (*path, kind)
    if kind in COMPOSITE:
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            return None, [(path, f"must be a list of conditions, is {_kind(value)}")]
        parts = [_read_when(part, (*path, index)) for index, part in enumerate(value)]
        problems = [problem for _, found in parts for problem in found]
        triggers = tuple(trigger for trigger, _ in parts if trigger)
        return (None, problems) if problems else (COMPOSITE[kind](parts=triggers), [])
    trigger: Trigger | None
    if kind == Plateau.kind:
        if not isinstance(value, Mapping):
            return None, [(path, f"must be a mapping such as {{window: 5, slope: 0.05}}, is {_kind(value)}")]
        trigger, problems = _validated(Plateau, dict(value))
    elif kind in VALUED:
        trigger, problems = _validated(VALUED[kind], {"value": value})
        problems = [((), what) for _, what in problems]
    else:
        return None, [(path, f"unknown condition {kind!r}{suggest(str(kind), KINDS)}")]
    return trigger, [((*path, *inner), what) for inner, what in problems]


def _validated(kind: type[Model], fields: Mapping[str, Any]) -> tuple[Model | None, list[tuple[Path, str]]]:
    try:
        return kind.model_validate(fields), []
    except ValidationError as error:
        return None, list(_explained(error, kind))


def _explained(error: ValidationError, kind: type[BaseModel]) -> Iterator[tuple[Path, str]]:
    """One (path, what) per field: a union reports every alternative, which belong in one sentence."""
    grouped: dict[Path, list[str]] = {}
    mistyped: dict[Path, list[str]] = {}
    for detail in error.errors():
        loc = detail["loc"]
        # Behind the field, pydantic names alternatives of a union; only list indices are part of the path.
        path = (loc[0], *(part for part in loc[1:] if isinstance(part, int)))
        match detail["type"]:
            case "missing":
                what = "is missing"
            case "extra_forbidden":
                what = f"unknown key {loc[0]!r}{suggest(str(loc[0]), kind.model_fields)}"
            case "value_error":
                what = str(detail["ctx"]["error"])
            case "too_short":
                context = detail["ctx"]
                what = f"must have at least {context['min_length']} items, has {context['actual_length']}"
            case "invalid_key":
                what = "a key must be text"
            case "literal_error" if detail["ctx"]["expected"] == "None":
                what = f"must be null, is {_shown(detail['input'])}"
            case other:
                what = f"must be {detail['msg'].removeprefix('Input should be ')}, is {_shown(detail['input'])}"
                if other.endswith("_type"):
                    mistyped.setdefault(path, []).append(what)
        if what not in grouped.setdefault(path, []):
            grouped[path].append(what)
    for path, whats in grouped.items():
        # An alternative of the right type tells more than one of another type.
        closer = [what for what in whats if what not in mistyped.get(path, [])]
        covering = any(path != other and path == other[: len(path)] for other in grouped)
        if not covering:
            yield path, " or ".join(closer or whats)


def _shown(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: Any) -> str:
    return "empty" if value is None else f"{_shown(value)} ({type(value).__name__})"
