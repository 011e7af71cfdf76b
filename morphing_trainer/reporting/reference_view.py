"""The reference of operations and conditions on a terminal: a list of all, or what there is to say about one."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from morphing_trainer.documents import dump_yaml
from morphing_trainer.reporting.layout import aligned
from morphing_trainer.reporting.reference import Facts, plain
from morphing_trainer.reporting.reference_texts import COMPONENTS, ENTRY_KEYS

WIDTH = 100
"""Of text that is not on a terminal."""

Rows = list[tuple[str, ...]]
Section = tuple[str, str | Rows]
"""Heading, and text or rows of a table."""


def listing(found: Iterable[Facts]) -> list[Section]:
    """Everything there is by family, a line each."""
    sections: dict[str, Rows] = {}
    for facts in found:
        heading = "Triggers (under when:)" if facts.sort == "condition" else facts.family
        sections.setdefault(heading, []).append((facts.name, plain(facts.value), facts.summary.replace("\\|", "|")))
    return list(sections.items())


def reference(facts: Facts) -> list[Section]:
    """All there is to say about one operation or condition."""
    sections: list[Section] = [(_heading(facts), facts.idea)]
    rows: Rows = [
        (field.name, plain(field.type), "" if field.default is None else f"default: {field.default}")
        for field in facts.fields
    ]
    if facts.sort == "condition":
        sections.append(("value", rows or plain(facts.value)))
    else:
        keys: Rows = [
            (key, plain(kind), plain(says).split("; see ")[0].split(", see ")[0]) for key, kind, _, says in ENTRY_KEYS
        ]
        sections += [("fields", rows), ("and in every entry", keys)]
        if any("component" in field.type for field in facts.fields):
            sections.append(("components", COMPONENTS))
    sections.append(("example", dump_yaml([facts.example] if facts.sort == "operation" else {"when": facts.example})))
    sections += [(name, text) for name, text in (("limits", facts.limits), ("source", facts.source)) if text]
    return sections


def _heading(facts: Facts) -> str:
    if facts.sort == "condition":
        return f"{facts.name}: a condition, under when:"
    aliases = f", also written {', '.join(facts.aliases)}" if facts.aliases else ""
    what = (
        "changes the model, or what of it is trained; works with morph(...), too"
        if facts.morphs
        else "changes settings of the training"
    )
    return f"{facts.name}{aliases}: {facts.family}; {what}"


def section_lines(sections: Sequence[Section]) -> list[str]:
    """Plain text, for pipes and files."""
    lines: list[str] = []
    for heading, body in sections:
        found = aligned(("",) * len(body[0]), body)[1:] if isinstance(body, list) else _wrapped(heading, body)
        lines += [*([""] if lines else []), heading, *(f"  {line}".rstrip() for line in found)]
    return lines


def section_view(sections: Sequence[Section]) -> RenderableType:
    """The same for a terminal of any width."""
    parts: list[RenderableType] = []
    for heading, body in sections:
        name, colon, rest = heading.partition(":")
        parts.append(Text.assemble(*([""] if not parts else ["\n"]), (name, "bold cyan"), f"{colon}{rest}"))
        parts.append(Padding(_table(body) if isinstance(body, list) else Text(_flowing(heading, body)), (0, 0, 0, 2)))
    return Group(*parts)


def _table(rows: Rows) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    for _ in rows[0][1:]:
        grid.add_column(overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def _flowing(heading: str, text: str) -> str:
    """`text` with no line breaks but those of its paragraphs; an example stays as it is."""
    if heading == "example":
        return text.rstrip()
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _wrapped(heading: str, text: str) -> list[str]:
    flowing = _flowing(heading, text)
    if heading == "example":
        return flowing.splitlines()
    return [line for part in flowing.splitlines() for line in (textwrap.wrap(part, WIDTH) or [""])]
