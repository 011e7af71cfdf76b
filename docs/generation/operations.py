"""The page of schedules and operations, from the operation and trigger classes.

What a class does, its fields, types and defaults are read from the class; a docstring is the place to correct a text.
"""

from __future__ import annotations

from generation.schedule_texts import FILE, HEAD, NESTED, NOTES, STATE
from morphing_trainer.documents import dump_yaml
from morphing_trainer.operations import ArchitectureOperation, Operation
from morphing_trainer.operations.components import Components
from morphing_trainer.reporting.reference import (
    conditions,
    families,
    fields_of,
    hints,
    name_of,
    summary_of,
    text_of,
)
from morphing_trainer.reporting.reference_texts import COMPONENTS, ENTRY_KEYS, EXAMPLES
from morphing_trainer.reporting.type_words import words
from morphing_trainer.triggers import InStage, Plateau, RankUseAbove


def operations_page() -> str:
    """The whole page."""
    found = families()
    contents = "\n".join(f"- [{name}](#{_anchor(name)}): {_listed(members)}" for name, members in found.items())
    keys = "\n".join(
        f"| `{key}` | {kind} |{f' {given} ' if given else ' '}| {says} |" for key, kind, given, says in ENTRY_KEYS
    )
    parts = [HEAD.format(contents=contents), FILE.replace("{keys}", keys), _triggers(), STATE]
    parts += [_family(name, members) for name, members in found.items()]
    return "\n".join(parts)


def _family(name: str, members: list[type[Operation]]) -> str:
    rows = [
        f"| [`{name_of(member)}`](#{name_of(member)}) | {words(hints(member)['value'])} | {summary_of(member)} |"
        for member in members
    ]
    table = ["| operation | value | does |", "|---|---|---|", *rows]
    components = any(hints(member)["value"] == Components for member in members)
    notes = [NOTES[name]] if name in NOTES else []
    parts = [
        f"## {name}\n",
        *notes,
        "\n".join(table) + "\n",
        *([f"### Components\n\n{COMPONENTS}"] if components else []),
    ]
    return "\n".join([*parts, *(_operation(member) for member in members)])


def _operation(operation: type[Operation]) -> str:
    name = name_of(operation)
    lines = [f"### {name}", "", text_of(operation), ""]
    if operation.aliases:
        lines += [f"Also written as {', '.join(f'`{alias}`' for alias in operation.aliases)}.", ""]
    lines += ["| option | type | default |", "|---|---|---|", *_rows(operation)]
    if issubclass(operation, ArchitectureOperation):
        lines += ["", "Works with `morph(...)` as well."]
    example = dump_yaml([{"name": name, **EXAMPLES[name]}]).rstrip()
    return "\n".join([*lines, "", "```yaml", example, "```", ""])


def _rows(kind: type[Operation] | type[Plateau]) -> list[str]:
    return [
        f"| `{field.name}` | {field.type} |{'' if field.default is None else f' `{field.default}`'} |"
        for field in fields_of(kind)
    ]


def _triggers() -> str:
    rows = [f"| `{entry.name}` | {entry.value} | {entry.summary} |" for entry in conditions()]
    head = "## Triggers\n\n`when:` holds one condition.\n\n| condition | value | holds when |\n|---|---|---|\n"
    options = ["| option of `plateau` | type | default |", "|---|---|---|", *_rows(Plateau)]
    plateau = f"**plateau.** {text_of(Plateau)}\n\n" + "\n".join(options)
    stage = f"**stage.** {text_of(InStage)}"
    ranks = f"**rank_use_above.** {text_of(RankUseAbove)}"
    return head + "\n".join(rows) + f"\n\n{plateau}\n\n{stage}\n\n{ranks}\n\n{NESTED}"


def _listed(members: list[type[Operation]]) -> str:
    return ", ".join(f"[`{name_of(member)}`](#{name_of(member)})" for member in members)


def _anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")
