"""Names of parts of a model in a schedule: `attn.0`, `mlp.*`, `attn.0-3`, `h.1`, `wte`, or a list of such."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, WithJsonSchema

from morphing_trainer.architectures import ARCHITECTURES
from morphing_trainer.errors import OperationError, suggest

if TYPE_CHECKING:
    from morphing_trainer.lineage import ModelSpec


def _kinds() -> frozenset[str]:
    """Of all families, registered ones too."""
    return frozenset(kind for architecture in ARCHITECTURES.values() for kind in architecture.components)


_LAYERS = r"(\.[\d*?\[\]-]+)?"  # what may follow a kind
_RANGE = re.compile(r"(\w+)\.(\d+)-(\d+)\Z")


def _known(pattern: str) -> str:
    """Check what can be checked without a model: the kind, and the form of what follows."""
    kind, dot, index = pattern.partition(".")
    if "*" not in kind and "?" not in kind and "[" not in kind and kind not in _kinds():
        raise ValueError(f"{pattern!r} names no component{suggest(kind, _kinds())}")
    if dot and not re.fullmatch(r"[\d*?\[\]-]+", index):
        raise ValueError(f"{pattern!r}: after the dot comes a layer (attn.0), a range (attn.0-3) or a glob (attn.*)")
    if (match := _RANGE.match(pattern)) and int(match[2]) > int(match[3]):
        raise ValueError(f"{pattern!r}: the range runs backwards; write {match[1]}.{match[3]}-{match[2]}")
    return pattern


_ADAPTABLE = sorted({kind for family in ARCHITECTURES.values() for kind in family.adaptable})
ADAPTABLE = {"type": "string", "pattern": f"^({'|'.join(_ADAPTABLE)}){_LAYERS}$", "examples": ["attn.2", "wte"]}
"""What `check_adaptable` lets pass, as JSON Schema."""


def check_adaptable(pattern: str) -> None:
    """Refuse a pattern that names components without a matrix that LoRA could adapt.

    Raises:
        ValueError: naming those that have one.
    """
    _known(pattern)
    able = {kind: modules for family in ARCHITECTURES.values() for kind, modules in family.adaptable.items()}
    if pattern.partition(".")[0] not in able:
        names = (f"{kind}.N" if "{layer}" in modules[0] else kind for kind, modules in sorted(able.items()))
        raise ValueError(f"{pattern!r} is not a component that can carry an adapter; those are {', '.join(names)}")


def _known_each(value: str | list[str]) -> str | list[str]:
    if not value:
        raise ValueError("must name at least one component, such as attn.0")
    for pattern in [value] if isinstance(value, str) else value:
        _known(pattern)
    return value


_KIND = "|".join([*sorted(_kinds()), r"[^.]*[*?\[][^.]*"])
_NAMED = {"type": "string", "pattern": f"^({_KIND}){_LAYERS}$", "examples": ["h.0", "attn.0-3", "mlp.*", "wte", "*"]}

Components = Annotated[
    str | list[str],
    AfterValidator(_known_each),
    WithJsonSchema({"anyOf": [_NAMED, {"type": "array", "minItems": 1, "items": _NAMED}]}),
]


def resolve(spec: ModelSpec, patterns: str | Iterable[str]) -> dict[str, frozenset[str]]:
    """Component name -> its parameters, for everything that the patterns name in this model.

    Raises:
        OperationError: if a pattern names nothing in this model.
    """
    names = spec.architecture.component_names(spec.config)
    chosen: dict[str, frozenset[str]] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if match := _RANGE.match(pattern):
            first, last = int(match[2]), int(match[3])
            there = {f"{match[1]}.{first}", f"{match[1]}.{last}"} <= set(names)  # and so is all that lies between
            found = [f"{match[1]}.{layer}" for layer in range(first, last + 1)] if there else []
        else:
            found = fnmatch.filter(names, pattern)
        if not found:
            kind = pattern.partition(".")[0]
            hint = f"; it has {kind}.0 to {kind}.{spec.layers - 1}" if f"{kind}.0" in names else suggest(pattern, names)
            raise OperationError(f"{pattern!r} names no component of this model with {spec.layers} layers{hint}")
        chosen |= {name: spec.expand(name) for name in found}
    return chosen
