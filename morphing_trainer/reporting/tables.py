"""The schedule and its operations as text: human numbers, tables, banners.

Every view exists twice: as a rich renderable for a terminal (`plan_table`, `operations_table`, `banner`), and as plain
text for pipes and log files (`plan_lines`, `operations_lines`, `operation_line`). All are pure functions.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from morphing_trainer.reporting.adapters import FACTS as _ADAPTERS
from morphing_trainer.reporting.adapters import adapter_changes, adapters_text
from morphing_trainer.reporting.console import (
    clean,
    count,
    duration,
    loss_text,
    operation_text,
    rate_text,
    size_text,
)
from morphing_trainer.reporting.layout import WIDE, Form, Responsive, aligned, in_lines, stacked
from morphing_trainer.reporting.records import Phase, Record

_PANEL = 88  # columns of a banner, where the terminal has as many
_WITH_ADAPTERS = WIDE + 25  # the least width at which a table that also tells of adapters has every column

Change = tuple[str, str]


_SHAPE = ("layers", "hidden", "mlp")
_SETTINGS: tuple[tuple[str, str, str, Callable[[Any], str]], ...] = (  # field, name in tables, name in banners, format
    ("learning_rate", "lr", "learning rate", rate_text),
    ("batch_size", "batch", "batch size", str),
    ("grad_accum", "accumulation", "accumulation", str),
    ("warmup_steps", "warm-up", "warm-up steps", str),
    ("eval_iters", "eval batches", "eval batches", lambda batches: "all" if batches is None else str(batches)),
    ("eval_interval", "eval every", "eval every", lambda steps: "off" if steps is None else f"{steps:,}"),
)


def setting_changes(before: Mapping[str, Any], after: Mapping[str, Any], *, long: bool = False) -> list[Change]:
    """(name, `old -> new`) of every hyper-parameter that `after` has and that differs from `before`."""
    changes = []
    for key, short_name, long_name, write in _SETTINGS:
        if key in after and (key not in before or before[key] != after[key]):
            old = f"{write(before[key])} -> " if key in before else ""
            changes.append((long_name if long else short_name, f"{old}{write(after[key])}"))
    if before.get("lr_anchor", 0) != after.get("lr_anchor", before.get("lr_anchor", 0)):
        changes.append(("lr schedule", f"restarts at step {after['lr_anchor']:,}"))
    return changes


def shape_changes(before: Mapping[str, Any], after: Mapping[str, Any], *, long: bool = False) -> list[Change]:
    """(name, `old -> new`) of layers, hidden, mlp and adapters, where they differ."""
    known = [key for key in _SHAPE if key in before and key in after]
    sizes = [(key, f"{before[key]} -> {after[key]}") for key in known if before[key] != after[key]]
    return sizes + adapter_changes(before, after, short=not long)


def parameter_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Rows on parameters and trainable parameters; none if neither changed."""
    old, new = before.get("parameters"), after.get("parameters")
    free_old, free_new = before.get("trainable", old), after.get("trainable", new)
    rows = []
    if old is not None and new is not None and old != new:
        growth = f" ({100 * (new - old) / old:+.0f}%)" if old else ""
        rows.append(("parameters", f"{count(old)} -> {count(new)}{growth}"))
    known = free_old is not None and free_new is not None
    if known and free_old != free_new and (free_old, free_new) != (old, new):
        whole = "" if new is None else " (all)" if free_new == new else f" of {count(new)}"
        rows.append(("trainable", f"{count(free_old)} -> {count(free_new)}{whole}"))
    return rows


def moments_text(moments: Mapping[str, int]) -> str:
    """`1.20M carried, 400k newborn`; empty where the optimizer had nothing to carry."""
    return ", ".join(
        f"{count(n)} {kind}" for kind in ("carried", "scaled", "newborn", "dropped") if (n := moments.get(kind))
    )


def loss_change(record: Record, later: Mapping[int, float] | None = None) -> str:
    """`before -> after`; a loss known only from a `later` evaluation (by record index) is marked with `*`."""
    before, after = record.before.get("loss"), record.after.get("loss")
    if after is not None:
        end = loss_text(after)
    elif later and record.index in later:
        end = f"{loss_text(later[record.index])}*"
    else:
        end = "next evaluation"
    return end if before is None else f"{loss_text(before)} -> {end}"


def _facts(record: Record, *, long: bool) -> list[Change]:
    """Everything that `record` changed or says about its work, as rows; what does not apply has no row."""
    rows = shape_changes(record.before, record.after, long=long) + parameter_changes(record.before, record.after)
    rows += setting_changes(record.before, record.after, long=long)
    if moments := moments_text(record.moments):
        rows.append(("moments", moments))
    if record.preserving is not None:
        rows.append(("function", "preserved" if record.preserving else "changed, the loss may jump and recover"))
    if record.note:
        rows.append(("note", clean(record.note)))
    if record.warning:
        rows.append(("warning", clean(record.warning)))
    return rows


def _joined(changes: Sequence[Change]) -> str:
    return ", ".join(f"{name} {text}" for name, text in changes)


_PLAN = ("#", "operation", "fires", "depth x width", "LoRA", "parameters", "trainable", "settings")


def _plan_rows(phases: Sequence[Phase]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    previous: Mapping[str, Any] = {}
    adapted = any(phase.lora_modules for phase in phases)
    for phase in phases:
        settings = phase.settings.to_dict()
        changed = setting_changes(previous, settings) if previous else _summary(settings)
        if phase.measures:
            changed.append(("batch", "as measured then"))
        name = "start" if phase.operation is None else operation_text(phase.operation, phase.value)
        fires = clean(phase.trigger) + (", repeated" if phase.repeats else "")
        rows.append((str(phase.index), name, fires, *_size(phase, adapted), _joined(changed)))
        previous = settings
    if len(phases) > 1 and not phases[-1].repeats:  # what goes on to the end has no target
        rows.append(("", "target", "", *_size(phases[-1], adapted), _joined(_summary(previous))))
    return rows


def _summary(settings: Mapping[str, Any]) -> list[Change]:
    """All settings that say something: accumulation over 1 step, warm-up of 0 steps and the like are left out."""
    dull = {"grad_accum": 1, "warmup_steps": 0, "eval_iters": None, "eval_interval": None}
    return setting_changes(
        {}, {k: v for k, v in settings.items() if k != "lr_anchor" and (k not in dull or dull[k] != v)}
    )


def _size(phase: Phase, adapted: bool) -> tuple[str, str, str, str]:
    """`adapted`: some phase has adapters; elsewhere nothing is said about them."""
    shape = size_text({key: getattr(phase, key) for key in _SHAPE})
    adapters = adapters_text({key: getattr(phase, key) for key in _ADAPTERS}, short=True) or "none"
    trainable = "all" if phase.trainable == phase.parameters else count(phase.trainable)
    return shape, adapters if adapted else "", count(phase.parameters), trainable


def plan_lines(phases: Sequence[Phase]) -> list[str]:
    """The plan as plain lines: a heading and one line per phase, then the target. Empty for no phases."""
    if not phases:
        return []
    header, *rows = [(*row[:2], *row[3:], row[2]) for row in (_PLAN, *_plan_rows(phases))]  # the longest column last
    return [f"Schedule: {_left(phases)}", *aligned(header, rows)]


def plan_table(phases: Sequence[Phase]) -> RenderableType:
    """The schedule played through without weights: one row per phase, from the start to the target architecture."""
    wide, narrow = [], []
    rows = _plan_rows(phases)
    for number, name, fires, shape, adapters, parameters, trainable, settings in rows:
        ends = name in ("start", "target")
        title, settings = Text(name, style="bold" if ends else "cyan"), in_lines(settings, 2 if ends else 1)
        wide.append((number, title, fires, shape, adapters, parameters, trainable, settings))
        below = f"\nLoRA {adapters}" if adapters else ""
        narrow.append((number, stacked(title, fires, settings), shape + below, parameters, trainable))
    kinds = ("number", "text", "text", "fixed", "fixed", "number", "number", "text")
    columns = list(zip(_PLAN, kinds, strict=True))
    heading = f"Schedule: {_left(phases)}"
    few = [column for column in columns if column[0] not in ("fires", "LoRA", "settings")]
    if rows[0][4]:
        return Responsive(heading, Form(columns, wide), Form(few, narrow), least=_WITH_ADAPTERS)
    without = Form(columns[:4] + columns[5:], [row[:4] + row[5:] for row in wide])  # no adapters anywhere
    return Responsive(heading, without, Form(few, narrow))


def _left(phases: Sequence[Phase]) -> str:
    """How many operations are to come; a resumed run may have done some, or all."""
    repeated = sum(phase.repeats for phase in phases)
    once = len(phases) - 1 - repeated
    done, left = phases[0].index, how_many(once)
    if repeated:
        left = f"{f'{left}, then ' if once else ''}{how_many(repeated)} repeated to the end"
        return f"{left}, {done} done" if done else left
    return f"{left} left, {done} done" if done else left


def how_many(number: int) -> str:
    return "no operations" if number <= 0 else "1 operation" if number == 1 else f"{number} operations"


OPERATIONS = ("step", "operation", "trigger", "before -> after", "parameters", "loss", "took")


def operation_rows(records: Sequence[Record], later: Mapping[int, float] | None) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for record in records:
        changed = shape_changes(record.before, record.after) + setting_changes(record.before, record.after)
        sizes = dict(parameter_changes(record.before, record.after))
        # Where something was frozen or thawed, by adapters too, the size column would not say it.
        if "trainable" in sizes and ("parameters" not in sizes or adapter_changes(record.before, record.after)):
            changed.append(("trainable", sizes["trainable"]))
        new = record.after.get("parameters")
        size = sizes.get("parameters", count(new) if new is not None else "").split(" (")[0]
        said = _joined(changed) or textwrap.shorten(clean(record.note or record.warning), 60, placeholder=" ...")
        name, loss = operation_text(record.operation, record.value), loss_change(record, later)
        rows.append((f"{record.step:,}", name, clean(record.trigger), said, size, loss, duration(record.seconds)))
    return rows


def operations_lines(records: Sequence[Record], later: Mapping[int, float] | None = None) -> list[str]:
    """The table after a run as plain lines; see `operations_table`."""
    if not records:
        return ["No operation was applied."]
    lines = [f"{how_many(len(records))} applied", *aligned(OPERATIONS, operation_rows(records, later))]
    return [*lines, LATER] if _late(records, later) else lines


LATER = "* at the next evaluation, after more training"


def _late(records: Sequence[Record], later: Mapping[int, float] | None) -> bool:
    return any(record.after.get("loss") is None and record.index in (later or {}) for record in records)


def operations_table(records: Sequence[Record], later: Mapping[int, float] | None = None) -> RenderableType:
    """What was applied: step, operation, trigger, what changed, parameters, evaluation loss, seconds.

    Args:
        records: the operations in the order they were applied.
        later: by `Record.index`, the loss at the next evaluation of operations that were not evaluated right away.
    """
    if not records:
        return Text("No operation was applied.")
    wide, narrow, stack = [], [], []
    for step, name, trigger, changed, size, loss, took in operation_rows(records, later):
        title, changed = Text(name, style="cyan"), in_lines(changed, 1)
        wide.append((step, title, trigger, changed, size, loss, took))
        size, loss = size.replace(" -> ", " ->\n"), loss.replace(" -> ", " ->\n").replace("next ", "next\n")
        narrow.append((step, stacked(title, trigger), changed, size, loss, took))
        stack.append((step, stacked(title, trigger).append(f"\n{changed}" if changed else ""), size, loss, took))
    kinds = ("number", "text", "text", "text", "fixed", "fixed", "number")
    columns = list(zip(OPERATIONS, kinds, strict=True))
    heading = f"{how_many(len(records))} applied"
    caption = LATER if _late(records, later) else None
    if any(adapter_changes(record.before, record.after) for record in records):
        below = Form(columns[:2] + columns[4:], stack)
        return Responsive(heading, Form(columns, wide), below, caption, _WITH_ADAPTERS)
    return Responsive(heading, Form(columns, wide), Form(columns[:2] + columns[3:], narrow), caption)


def operation_line(record: Record) -> str:
    """One operation on one plain line."""
    name = operation_text(record.operation, record.value) + (f" ({clean(record.desc)})" if record.desc else "")
    facts = "; ".join(f"{label} {text}" for label, text in _facts(record, long=True))
    ending = f"loss {loss_change(record)}; took {duration(record.seconds)}"
    return "; ".join(part for part in (f"{name}: {clean(record.trigger)}", facts, ending) if part)


def banner(record: Record) -> RenderableType:
    """One operation as a panel: trigger, what changed, moments, whether the function is preserved, loss, seconds."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    rows = [("", clean(record.desc))] if record.desc else []
    rows += [("trigger", clean(record.trigger)), *_facts(record, long=True)]
    for label, text in [*rows, ("loss", loss_change(record)), ("took", duration(record.seconds))]:
        grid.add_row(label, Text(text, style="" if label else "italic"))
    title = Text(operation_text(record.operation, record.value), style="bold")
    subtitle = Text(f"step {record.step:,}", style="dim")
    return Panel(
        grid,
        title=title,
        title_align="left",
        subtitle=subtitle,
        subtitle_align="right",
        border_style="cyan",
        width=_PANEL,
    )
