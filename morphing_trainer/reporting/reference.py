"""What the classes of operations and conditions say of themselves: for the reference page, `morph ops` and the schemas.

Texts are Markdown as in the docstrings; `plain` makes them text for a terminal.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from morphing_trainer.errors import ConfigError, suggest
from morphing_trainer.operations import NAMES, OPERATIONS, ArchitectureOperation, Operation
from morphing_trainer.reporting.reference_texts import CONDITION_EXAMPLES, EXAMPLES
from morphing_trainer.reporting.type_words import words
from morphing_trainer.triggers import COMPOSITE, VALUED, InStage, Plateau, Trigger

_ASIDE = re.compile(r"^(Sources?|Limits): +", re.MULTILINE)


@dataclass(frozen=True)
class FieldFacts:
    """One field of a class: its type and default in words, None where it must be given; the default as it is."""

    name: str
    type: str
    default: str | None
    given: Any = None

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "type": plain(self.type), "required": self.default is None, "default": self.given}


@dataclass(frozen=True)
class Facts:
    """An operation or a condition.

    Attributes:
        sort: `operation` or `condition`.
        family: heading in the reference.
        value: its value, in words.
        summary: the first sentence.
        idea: the text without what it says of limits and sources.
        example: an entry of a schedule, or what may stand under `when:`.
        morphs: it changes the model, and works with `morph(...)` as well.
    """

    name: str
    sort: str
    family: str
    value: str
    summary: str
    idea: str
    limits: str
    source: str
    fields: tuple[FieldFacts, ...]
    example: Mapping[str, Any]
    aliases: tuple[str, ...] = ()
    morphs: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for machines."""
        texts = {key: getattr(self, key) for key in ("idea", "limits", "source")}
        return {
            "name": self.name,
            "sort": self.sort,
            "family": self.family,
            "aliases": list(self.aliases),
            "changes_model": self.morphs,
            "value": plain(self.value),
            "summary": self.summary.replace("\\|", "|"),
            **texts,
            "fields": [entry.to_dict() for entry in self.fields],
            "example": dict(self.example),
        }


def facts_of(operation: type[Operation]) -> Facts:
    """What there is to say about an operation."""
    name, fields = name_of(operation), tuple(fields_of(operation))
    idea, limits, source = parted(text_of(operation))
    value = next(entry.type for entry in fields if entry.name == "value")
    return Facts(
        name,
        "operation",
        operation.family,
        value,
        summary_of(operation),
        idea,
        limits,
        source or parted(_one_line(inspect.getmodule(operation)))[2],
        fields,
        {"name": name, **EXAMPLES.get(name, {"value": plain(value), "max_wait_iters": 0})},
        operation.aliases,
        issubclass(operation, ArchitectureOperation),
    )


def conditions() -> list[Facts]:
    """All that may stand under `when:`, in the order of the reference."""
    kinds: list[tuple[str, str, type[Trigger], Iterable[FieldFacts]]] = [
        (kind, words(hints(trigger)["value"]), trigger, ()) for kind, trigger in VALUED.items()
    ]
    kinds.append((Plateau.kind, "`{window, slope}`", Plateau, fields_of(Plateau)))
    kinds.append((InStage.kind, "stage, or `{name, then}`", InStage, ()))
    kinds += [(kind, "list of conditions", trigger, ()) for kind, trigger in COMPOSITE.items()]
    return [
        Facts(
            kind,
            "condition",
            "Triggers",
            value,
            lowered(summary_of(trigger)),
            *parted(text_of(trigger)),
            tuple(fields),
            CONDITION_EXAMPLES.get(kind, {kind: plain(value)}),
        )
        for kind, value, trigger, fields in kinds
    ]


def families() -> dict[str, list[type[Operation]]]:
    """Family -> its operations, in the order of the registry."""
    found: dict[str, list[type[Operation]]] = {}
    for operation in OPERATIONS.values():
        found.setdefault(operation.family, []).append(operation)
    return found


def everything() -> list[Facts]:
    """All operations, then all conditions."""
    return [*(facts_of(operation) for operation in OPERATIONS.values()), *conditions()]


def looked_up(name: str) -> list[Facts]:
    """What a person asks for: an operation or alias, a condition, a family, or `triggers` for all conditions.

    Raises:
        ConfigError: naming the nearest.
    """
    if name in NAMES:
        return [facts_of(NAMES[name])]
    listed = {facts.name: facts for facts in conditions()}
    if name in listed:
        return [listed[name]]
    asked = name.lower().replace(" ", "-").replace("_", "-")
    if asked in ("triggers", "trigger", "conditions", "when"):
        return list(listed.values())
    groups = {family.lower().replace(" ", "-"): members for family, members in families().items()}
    if asked in groups:
        return [facts_of(member) for member in groups[asked]]
    hint = suggest(name, [*NAMES, *listed, *groups, "triggers"])
    if hint.startswith("; valid are"):
        hint = "; `morph ops` lists them all"
    raise ConfigError(f"morph ops: no operation, condition or family {name!r}{hint}")


def fields_of(kind: type[BaseModel]) -> list[FieldFacts]:
    """The fields of a class, `name` aside."""
    return [
        FieldFacts(field, words(hints(kind)[field]), None)
        if info.is_required()
        else FieldFacts(field, words(hints(kind)[field]), default_text(info.default), info.default)
        for field, info in kind.model_fields.items()
        if field != "name"
    ]


def hints(kind: type[Any]) -> dict[str, Any]:
    """The annotations of a class, with what pydantic reads of them."""
    return typing.get_type_hints(kind, include_extras=True)


def name_of(operation: type[Operation]) -> str:
    return str(operation.model_fields["name"].default)


def text_of(kind: type[Any]) -> str:
    """The docstring."""
    return inspect.cleandoc(kind.__doc__ or "")


def summary_of(kind: type[Any]) -> str:
    """The first paragraph's first sentence."""
    paragraph = " ".join(text_of(kind).split("\n\n")[0].split())
    return re.split(r"\.(?= [A-Z`]|$)", paragraph)[0].replace("|", "\\|")


def parted(text: str) -> tuple[str, str, str]:
    """A docstring as what it is about, its limits, its sources."""
    found = {"idea": "", "limits": "", "source": ""}
    for paragraph in text.split("\n\n"):
        first, *asides = _ASIDE.split(paragraph)
        found["idea"] += f"{first.strip()}\n\n" if first.strip() else ""
        for kind, said in zip(asides[::2], asides[1::2], strict=True):
            found["limits" if kind == "Limits" else "source"] += f"{' '.join(said.split())}\n"
    return found["idea"].strip(), found["limits"].strip(), found["source"].strip()


def _one_line(module: Any) -> str:
    """A module's first paragraph with its sources on a line of their own."""
    first = " ".join((getattr(module, "__doc__", "") or "").split("\n\n")[0].split())
    return re.sub(r" (?=Sources?: )", "\n", first)


def plain(markdown: str) -> str:
    """Text for a terminal: no backticks, of links their words."""
    return re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", markdown).replace("`", "").replace("\\|", "|")


def lowered(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def default_text(value: Any) -> str:
    """A default as YAML has it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
