"""Config files: every value held against the type of its argument, every problem located."""

from __future__ import annotations

import contextlib
import re
import types
from typing import Any, Literal, Union, get_args, get_origin

from morphing_trainer.cli.groups import ALL, Field, Given, choices_of, describe, nearest, options_of
from morphing_trainer.documents import load_document
from morphing_trainer.errors import ConfigError, Problem, suggest


def read_file(path: str, rank: int) -> tuple[dict[str, Given], list[Problem]]:
    document = load_document(path)
    if not isinstance(document.data, dict):
        raise ConfigError(f"{path}: expected `name: value` pairs, got {_show(document.data)}")
    given, problems = {}, list(document.problems)
    for name, value in document.data.items():
        where = f"{path}:{document.lines[name,]}"
        if name not in ALL:
            problems.append(Problem(where, f"{name}: no such argument{nearest(name)}"))
        elif value is not None:
            entry = ALL[name]
            try:
                given[name] = Given(_convert(flag(value, entry), entry), where, rank)
            except (TypeError, OverflowError):
                problems.append(Problem(where, f"{name}: {_mismatch(value, entry)}"))
    return given, sorted(problems, key=lambda problem: int(problem.where.rpartition(":")[2]))


def flag(value: Any, entry: Field) -> Any:
    """`true` and `false` for an option that may be given bare or with a text (`fsdp`, `resume_from_checkpoint`)."""
    if "const" not in entry.metadata or entry.hint != str | None:
        return value
    return {"true": entry.metadata["const"], "false": None}.get(str(value).lower(), value)


def _convert(value: Any, entry: Field) -> Any:
    """`value` as the command line would give it. Raises TypeError or OverflowError if it does not fit."""
    if value is None or value is entry.metadata.get("const"):
        return value
    choices = choices_of(entry)
    if choices and value not in choices:
        raise TypeError
    return _as(value, entry.hint)


def _as(value: Any, hint: Any) -> Any:
    kind = get_origin(hint) or hint
    if kind in (Union, types.UnionType):
        for option in options_of(hint):
            with contextlib.suppress(TypeError):
                return _as(value, option)
    elif kind is list and type(value) is list:
        return [_as(item, get_args(hint)[0]) for item in value]
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif kind is Literal or type(value) is kind:
        return value
    raise TypeError


def _show(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f"the text {value!r}"
        case list() | dict():
            return "a list" if isinstance(value, list) else "a mapping"
    return f"the number {value}"


def _mismatch(value: Any, entry: Field) -> str:
    if isinstance(value, str) and (choices := choices_of(entry)):
        return f"{value!r} is not a valid value{suggest(value, choices)}"
    advice, kinds = "", options_of(entry.hint)
    if isinstance(value, str) and (int in kinds or float in kinds) and _NUMBER.fullmatch(value):
        advice = "; remove the quotes"
    elif isinstance(value, int | float) and str in kinds and dict not in kinds:
        advice = "; put it in quotes"
    return f"expected {describe(entry)}, got {_show(value)}{advice}"


_NUMBER = re.compile(r"\s*[-+]?[\d_.]+(e[-+]?\d+)?\s*", re.IGNORECASE)
