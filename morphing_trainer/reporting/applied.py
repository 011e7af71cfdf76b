"""What `morph apply` has done, as a table: the model before, and after each operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from morphing_trainer.reporting.adapters import adapters_text
from morphing_trainer.reporting.console import clean, count, operation_text, size_text
from morphing_trainer.reporting.layout import Form, Responsive, aligned
from morphing_trainer.reporting.tables import moments_text

_FATES = ("kept", "copied", "changed", "new")
_OWN = ("name", "value", "preserving", "note", "warning", "before", "after", "tensors", "moments")
_HEADER = ("", "layers x hidden", "adapters", "parameters", "function", "tensors", "optimizer")
_NARROW = (0, 1, 3, 4)


def applied_lines(done: Mapping[str, Any]) -> list[str]:
    """Plain lines of `Applied.to_dict`."""
    header, rows = _table(done)
    return [*aligned(header, rows), "", *notes(done)]


def applied_view(done: Mapping[str, Any]) -> RenderableType:
    """The same for a terminal."""
    header, rows = _table(done)
    kinds = ["text", *("fixed" for _ in header[1:])]
    wide = Form(list(zip(header, kinds, strict=True)), rows)
    few = [number for number, name in enumerate(header) if name in {_HEADER[i] for i in _NARROW}]
    narrow = Form([(header[i], kinds[i]) for i in few], [[row[i] for i in few] for row in rows])
    return Group(Responsive("Operations", wide, narrow), *(Text(note) for note in notes(done)))


def notes(done: Mapping[str, Any]) -> list[str]:
    """What is worth knowing besides."""
    found = []
    for operation in done["operations"]:
        found += [f"{operation['name']}: {clean(operation[key])}" for key in ("note", "warning") if operation[key]]
    check = done["check"]
    if check is None:
        found.append("function: not checked")
    elif done["preserving"]:
        found.append(
            f"function: the same on random tokens (logits within {check['difference']:.1e} of their spread, rounding "
            f"may come to {check['tolerance']:.0e})"
        )
    else:
        found.append(
            f"function: another one, as the operations say; loss on random tokens {check['before']:.4f} -> "
            f"{check['after']:.4f} ({check['after'] - check['before']:+.4f})"
        )
    types = ", ".join(done["types"])
    return [*found, f"written: {clean(done['out'])} ({count(done['bytes'])}B of weights, {types})"]


def _table(done: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, without columns that say nothing."""
    operations = done["operations"]
    rows = [["before", *_shape(operations[0]["before"]), "", "", ""]]
    for operation in operations:
        function = "stays" if operation["preserving"] else "changes"
        moments = operation["moments"]
        fates = ", ".join(f"{n:,} {key}" for key in _FATES if (n := operation["tensors"][key]))
        optimizer = "" if moments is None else moments_text(moments) or "nothing to carry"
        rows.append([_name(operation), *_shape(operation["after"]), function, fates, optimizer])
    shown = [i for i in range(len(_HEADER)) if any(row[i] for row in rows)]
    return [_HEADER[i] for i in shown], [[row[i] for i in shown] for row in rows]


def _name(operation: Mapping[str, Any]) -> str:
    options = [f"{key}: {clean(value)}" for key, value in operation.items() if key not in _OWN]
    return clean(", ".join([operation_text(operation["name"], operation["value"]), *options]))


def _shape(facts: Mapping[str, Any]) -> Sequence[str]:
    return size_text(facts), adapters_text(facts, short=True), count(facts["parameters"])
