"""The operations of a run as a table: what each did to the model and to its loss."""

from __future__ import annotations

from typing import Any

from morphing_trainer.hub.markdown import code, plain, table
from morphing_trainer.hub.told import Told
from morphing_trainer.reporting.console import count, loss_text, operation_text
from morphing_trainer.reporting.journal import Change
from morphing_trainer.reporting.tables import loss_change, parameter_changes, setting_changes, shape_changes
from morphing_trainer.run.salvage import number

_COLUMNS = (*("step", "operation", "why then", "what changed", "parameters", "evaluation loss", "optimizer state"),)


def timeline(told: Told) -> list[str]:
    """A line for each operation, between the start and the last evaluation."""
    if not told.began:
        return []
    rows = [_first(told), *(_row(change) for change in told.changes)]
    if last := told.evaluations[-1:]:
        at, loss = int(number(last[0].get("step")) or 0), loss_text(number(last[0].get("eval_loss")))
        rows.append((f"{at:,}", "*last evaluation*", "", "", _size(told.model.parameters), loss, ""))
    kept = [i for i, _ in enumerate(_COLUMNS) if i in (0, 1) or any(row[i] for row in rows)]
    cells = [[row[i] for i in kept] for row in rows]
    lines = table([_COLUMNS[i] for i in kept], cells, numbers=("step", "parameters"))
    notes = []
    if any(change.later is not None and change.undone is None for change in told.changes):
        notes.append("\\* measured at the next evaluation, after more training.")
    for change in told.changes:
        if change.undone is not None:
            before, after = (loss_text(_loss(change.undone.get(name))) for name in ("before", "loss"))
            reason = change.undone.get("reason")
            why = plain(reason) if reason else f"the loss went from {before} to {after}"
            notes.append(f"{code(change.record.operation)} at step {change.record.step:,} was undone: {why}.")
    return ["## How it grew", "", *lines, *(["", "  \n".join(notes)] if notes else [])]


def _first(told: Told) -> tuple[str, ...]:
    applied = [change.record for change in told.changes]
    size = applied[0].before.get("parameters") if applied else told.model.parameters
    loss = ""
    if first := told.evaluations[:1]:
        step = int(number(first[0].get("step")) or 0)
        if not applied or step <= applied[0].step:
            loss = loss_text(number(first[0].get("eval_loss"))) + (f" (at step {step:,})" if step else "")
    return ("0", "*start*", "", "", _size(size), loss, "")


def _row(change: Change) -> tuple[str, ...]:
    record = change.record
    changed = shape_changes(record.before, record.after) + setting_changes(record.before, record.after)
    sizes = dict(parameter_changes(record.before, record.after))
    if "trainable" in sizes and "parameters" not in sizes:
        changed.append(("trainable", sizes["trainable"]))
    said = ", ".join(plain(f"{name} {text}") for name, text in changed) or plain(record.note or record.warning)
    later = {} if change.later is None else {record.index: change.later}
    loss = plain(loss_change(record, later).replace("next evaluation", "not yet known"))
    name = code(operation_text(record.operation, record.value))
    if change.undone is not None:
        name, loss = f"~~{code(record.operation)}~~ (undone)", ""
    elif record.desc:
        name += f"<br>{plain(record.desc)}"
    total = max(1, sum(record.moments.values()))
    memory = ", ".join(f"{many / total:.0%} {plain(kind)}" for kind, many in record.moments.items() if many)
    size = _size(record.after.get("parameters"))
    return (f"{record.step:,}", name, plain(record.trigger), _arrows(said), size, _arrows(loss), memory)


def _arrows(text: str) -> str:
    return text.replace("-&gt;", "→")


def _size(parameters: Any) -> str:
    return count(parameters) if isinstance(parameters, int) else ""


def _loss(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None
