"""Where a run stands, as labelled lines: for a terminal, and as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from morphing_trainer.reporting.adapters import adapters_text
from morphing_trainer.reporting.console import (
    clean,
    count,
    duration,
    loss_text,
    operation_text,
    rate_text,
    size_text,
)
from morphing_trainer.run.standing import EMPTY, FAILED, FINISHED, KILLED, RUNNING, Saved, Standing

Row = tuple[str, str]

_COLORS = {RUNNING: "green", FINISHED: "green", FAILED: "red", KILLED: "red"}
_MOST_SAVED = 5


def standing_view(found: Standing) -> RenderableType:
    """On a terminal: name and state, a bar, what is known, and what to do."""
    head = Text.assemble((clean(found.run), "bold"), "  ", (state_text(found), _COLORS.get(found.state, "yellow")))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    if found.end:
        grid.add_row("", ProgressBar(total=found.end, completed=min(found.step, found.end), width=50))
    for label, text in standing_rows(found):
        grid.add_row(label, Text(text, style="red" if label == "damaged" else ""))
    return Group(head, grid, *(Text(f"-> {line}", style="bold") for line in found.advice))


def standing_lines(found: Standing) -> list[str]:
    """The same as plain lines."""
    rows = standing_rows(found)
    width = max((len(label) for label, _ in rows), default=0)
    lines = [f"{label:{width}}  {text}" for label, text in rows]
    return [f"{clean(found.run)}: {state_text(found)}", *lines, *(f"-> {line}" for line in found.advice)]


def state_text(found: Standing) -> str:
    """`running (process 123)`, `failed at step 40`, `finished at step 80, by early stopping`."""
    if found.state == RUNNING:
        return f"running (process {found.process})" if found.process else "running"
    if found.state == EMPTY:
        return "not begun: it has written nothing yet, and no process trains in it"
    at = found.step if found.ended is None else found.ended["step"]
    early = ", by early stopping" if found.ended and found.ended.get("early") else ""
    if found.state == KILLED:
        return f"killed after step {at:,}: it has ended without a word, and no process trains in it"
    return f"{found.state} at step {at:,}{early}"


def standing_rows(found: Standing) -> list[Row]:
    """(label, text) of all that is known."""
    rows = [
        ("step", _steps(found)),
        ("trained", _joined(_trained(found))),
        ("stage", _stage(found)),
        ("model", _model(found.model)),
        ("loss", _joined(_losses(found))),
        ("speed", _joined(_speed(found))),
        ("operations", _done(found)),
        ("last", _last(found.last)),
        ("not applied" if found.state == FINISHED else "next", _next(found.next)),
        ("checkpoints", _saved(found.saved, found.verified)),
        ("ended", _ended(found)),
        ("written", f"{duration(found.quiet)} ago" if found.quiet is not None and found.state == RUNNING else ""),
    ]
    return [*((label, text) for label, text in rows if text), *(("damaged", clean(fault)) for fault in found.faults)]


def _joined(parts: Sequence[str]) -> str:
    return ", ".join(part for part in parts if part)


def _steps(found: Standing) -> str:
    if found.state == EMPTY:
        return ""
    if not found.end:
        return f"{found.step:,} (how many there will be is not known)"
    share = f" ({100 * found.step // found.end} %)"
    return f"{found.step:,} of {found.end:,}{share}"


def _trained(found: Standing) -> list[str]:
    return [
        ""
        if found.epoch is None
        else f"epoch {found.epoch:.2f}"
        if found.epoch >= 0.995
        else f"epoch {found.epoch:.3g}",
        "" if found.tokens is None else f"{count(found.tokens)} tokens",
        "" if found.seconds is None else duration(found.seconds),
    ]


def _stage(found: Standing) -> str:
    if found.stage is None or len(found.stages) < 2:
        return ""
    place = f" ({found.stages.index(found.stage) + 1} of {len(found.stages)})" if found.stage in found.stages else ""
    return clean(f"{found.stage}{place}")


def _model(facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    size, adapters = size_text(facts), adapters_text(facts)
    known = facts.get("parameters")
    parameters = "" if known is None else f"{count(known)} parameters"
    free = facts.get("trainable", known)
    part = f"{count(free)} of them trained" if free != known else ""
    return _joined(
        (f"{size} (layers x hidden, mlp)" if size else "", f"LoRA {adapters}" if adapters else "", parameters, part)
    )


def _losses(found: Standing) -> list[str]:
    def told(point: Mapping[str, Any] | None, what: str) -> str:
        return "" if point is None else f"{what} {loss_text(point['loss'])} at step {point['step']:,}"

    best = found.best if found.best != found.evaluation else None
    rate = "" if found.learning_rate is None else f"learning rate {rate_text(found.learning_rate)}"
    same = " (its best)" if found.best is not None and found.best == found.evaluation else ""
    return [told(found.loss, "training"), told(found.evaluation, "evaluation") + same, told(best, "best"), rate]


def _speed(found: Standing) -> list[str]:
    if found.steps_per_second is None:
        return []
    tokens = "" if found.tokens_per_second is None else f"{count(found.tokens_per_second)} tokens/s"
    left = "" if found.left is None else f"{duration(found.left)} left at this speed"
    return [f"{found.steps_per_second:.3g} steps/s", tokens, left]


def _done(found: Standing) -> str:
    if not (found.operations or found.undone or found.next):
        return ""
    return f"{found.operations} applied" + (f", {found.undone} undone by guards" if found.undone else "")


def _last(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return ""
    name = operation_text(record["operation"], record.get("value"))
    return clean(f"{name} at step {record['step']:,} ({record['trigger']})")


def _next(coming: Mapping[str, Any] | None) -> str:
    if coming is None:
        return ""
    waits = coming.get("progress") or coming.get("trigger") or ""
    return clean(operation_text(str(coming["operation"]), coming.get("value")) + (f": {waits}" if waits else ""))


def _saved(saved: Sequence[Saved], verified: bool) -> str:
    if not saved:
        return "none yet"
    shown = [each.name + (f" ({each.fault})" if each.fault else "") for each in saved[:_MOST_SAVED]]
    more = f" and {len(saved) - _MOST_SAVED} more" if len(saved) > _MOST_SAVED else ""
    damaged = sum(each.fault is not None for each in saved)
    looked = "every file hashed" if verified else "files there, contents not looked at"
    state = f"{damaged} of {len(saved)} damaged" if damaged else f"sound: {looked}"
    return clean(f"{', '.join(shown)}{more}; {state}")


def _ended(found: Standing) -> str:
    if found.ended is None:
        return ""
    why = found.ended.get("error") or found.ended.get("reason") or ""
    return clean(_joined((str(found.ended.get("time", "")), str(why))))
