"""Fields of a schedule's entries: validated, and every fault explained in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from morphing_trainer.errors import suggest
from morphing_trainer.schedule_entry import GuardTerms, Path, Terms
from morphing_trainer.triggers import COMPOSITE, KINDS, VALUED, AnyOf, InStage, LossBelow, Plateau, Trigger, Waited

Model = TypeVar("Model", bound=BaseModel)
Fault = tuple[Path, str]
"""The path of a field inside its entry, and what is wrong with it."""


def read_trigger(when: Any, terms: Terms | None, has_when: bool) -> tuple[Trigger | None, list[Fault]]:
    """The trigger of an entry: what stands under its `when:`, if it has one, or else what its `terms` say."""
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


def read_guard(data: Any) -> tuple[GuardTerms | None, list[Fault]]:
    """The guard of an entry, from what stands under its `guard:`; null is none."""
    if data is None:
        return None, []
    if not isinstance(data, Mapping):
        example = "{max_loss_increase: 0.1, within_steps: 200}"
        return None, [(("guard",), f"must be a mapping such as {example}, is {described(data)}")]
    found, faults = validated(GuardTerms, {str(key): value for key, value in data.items()})
    return found, [(("guard", *path), what) for path, what in faults]


_HARMLESS = {"trigger_loss": 0.0, "max_wait_iters": 0, "when": {"waited": 0}, "reevaluate": False, "guard": None}
"""In place of defaults that are wrong: what is wrong is told once, not again for every entry."""


def read_defaults(defaults: Mapping[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """The defaults of a schedule with nothing wrong among them, and what was. Unknown keys are left alone."""
    plain = {key: defaults[key] for key in ("trigger_loss", "max_wait_iters", "reevaluate") if key in defaults}
    _, faults = validated(Terms, plain)
    faults += read_guard(defaults.get("guard"))[1]
    if "when" in defaults:
        faults += _read_when(defaults["when"], ("when",))[1]
    wrong = {path[0] for path, _ in faults}
    return {**defaults, **{key: value for key, value in _HARMLESS.items() if key in wrong}}, faults


def _read_when(data: Any, path: Path) -> tuple[Trigger | None, list[Fault]]:
    """A trigger from `{kind: value}`, nested under `all` and `any`."""
    if not isinstance(data, Mapping) or len(data) != 1:
        is_wide = isinstance(data, Mapping) and len(data) > 1
        several = "a mapping with several keys; join them with 'all: [...]' or 'any: [...]'"
        what = several if is_wide else described(data)
        return None, [(path, f"must be one condition such as {{at_step: 500}}, is {what}")]
    ((kind, value),) = data.items()
    path = (*path, kind)
    if kind in COMPOSITE:
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            return None, [(path, f"must be a list of conditions, is {described(value)}")]
        parts = [_read_when(part, (*path, index)) for index, part in enumerate(value)]
        problems = [problem for _, found in parts for problem in found]
        triggers = tuple(trigger for trigger, _ in parts if trigger)
        return (None, problems) if problems else (COMPOSITE[kind](parts=triggers), [])
    trigger: Trigger | None
    if kind == InStage.kind:
        return _read_stage(value, path)
    if kind == Plateau.kind:
        if not isinstance(value, Mapping):
            return None, [(path, f"must be a mapping such as {{window: 5, slope: 0.05}}, is {described(value)}")]
        trigger, problems = validated(Plateau, dict(value))
    elif kind in VALUED:
        trigger, problems = validated(VALUED[kind], {"value": value})
        problems = [((), what) for _, what in problems]
    else:
        return None, [(path, f"unknown condition {kind!r}{suggest(str(kind), {*VALUED, *KINDS})}")]
    return trigger, [((*path, *inner), what) for inner, what in problems]


def _read_stage(value: Any, path: Path) -> tuple[Trigger | None, list[Fault]]:
    """A stage's name, or `{name: ..., then: {condition}}`."""
    if isinstance(value, str) and value:
        return InStage(name=value), []
    if not isinstance(value, Mapping):
        return None, [(path, f"must be the name of a stage, or {{name: ..., then: {{...}}}}, is {described(value)}")]
    faults: list[Fault] = [
        ((*path, str(key)), f"unknown key {key!r}{suggest(str(key), ('name', 'then'))}")
        for key in value
        if key not in ("name", "then")
    ]
    name = value.get("name")
    if not isinstance(name, str) or not name:
        faults.append(((*path, "name"), f"must be the name of a stage, is {described(name)}"))
    then, found = _read_when(value["then"], (*path, "then")) if "then" in value else (None, [])
    faults += found
    return (None, faults) if faults else (InStage(name=str(name), then=then), [])


def validated(kind: type[Model], fields: Mapping[str, Any]) -> tuple[Model | None, list[Fault]]:
    """A `kind` with these fields, or None and one fault per field that does not fit."""
    try:
        return kind.model_validate(fields), []
    except ValidationError as error:
        return None, list(_explained(error, kind))


def _explained(error: ValidationError, kind: type[BaseModel]) -> Iterator[Fault]:
    """One (path, what) per field: a union reports every alternative, which belong in one sentence."""
    grouped: dict[Path, list[str]] = {}
    mistyped: dict[Path, list[str]] = {}
    for detail in error.errors():
        loc = detail["loc"]
        # Behind the field, pydantic names alternatives of a union; only list indices are part of the path.
        path = (*loc[:1], *(part for part in loc[1:] if isinstance(part, int)))
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
                what = f"must be null, is {shown(detail['input'])}"
            case other:
                what = f"must be {detail['msg'].removeprefix('Input should be ')}, is {shown(detail['input'])}"
                if other.endswith("_type"):
                    mistyped.setdefault(path, []).append(what)
        if what not in grouped.setdefault(path, []):
            grouped[path].append(what)
    covering = {path[:end] for path in grouped for end in range(len(path))}
    for path, whats in grouped.items():
        # An alternative of the right type tells more than one of another type.
        closer = [what for what in whats if what not in mistyped.get(path, [])]
        if path not in covering:
            yield path, " or ".join(closer or whats)


def shown(value: Any) -> str:
    """A value as it is quoted in a message, cut where it is long."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def described(value: Any) -> str:
    """A value and its type, for one that is of the wrong type."""
    return "empty" if value is None else f"{shown(value)} ({type(value).__name__})"
