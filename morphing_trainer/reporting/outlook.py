"""A run to come as a table: what it costs and needs in each phase, and when each begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from morphing_trainer.advice import Advice
from morphing_trainer.outlook import Outlook, Prospect
from morphing_trainer.reporting.adapters import FACTS, adapters_text
from morphing_trainer.reporting.console import clean, count, operation_text, scaled_text, size_text
from morphing_trainer.reporting.layout import Form, Responsive, aligned, stacked
from morphing_trainer.reporting.tables import setting_changes

_HEADER = ("#", "operation", "step", "depth x width", "LoRA", "parameters", "trained", "FLOPs/token", "memory")
_KINDS = ("number", "text", "fixed", "fixed", "fixed", "number", "number", "number", "number")


def outlook_json(outlook: Outlook, advice: Sequence[Advice]) -> dict[str, Any]:
    """All of it as plain JSON. Memory is in bytes, computation in floating-point operations."""
    length = outlook.conditions.length
    phases = [
        {
            **{name: value for name, value in asdict(each.phase).items() if name != "settings"},
            "settings": each.phase.settings.to_dict(),
            "soonest": each.soonest,
            "latest": each.latest,
            "tokens_per_step": each.tokens,
            "forward_flops_per_token": each.flops.forward / length,
            "flops_per_token": each.flops_per_token(length),
            "memory": {**asdict(each.memory), "total": each.memory.total},
        }
        for each in outlook.prospects
    ]
    costs = {name: outlook.cost(late=late) for name, late in (("soonest", False), ("latest", True))}
    return {
        "tokens_per_sample": length,
        "steps": outlook.conditions.steps,
        "phases": phases,
        "cost": {name: None if cost is None else asdict(cost) for name, cost in costs.items()},
        "advice": [asdict(each) for each in advice],
    }


def outlook_lines(outlook: Outlook, advice: Sequence[Advice], facts: Sequence[str]) -> list[str]:
    """As plain text."""
    lines = [*facts, "", *aligned(_HEADER, _rows(outlook)), "", *_summary(outlook)]
    return [*lines, *(["", "Advice:", *(f"- {each}" for each in advice)] if advice else [])]


def outlook_table(outlook: Outlook, advice: Sequence[Advice], facts: Sequence[str]) -> RenderableType:
    """For a terminal: on a narrow one, when and what stand below an operation's name."""
    rows = _rows(outlook)
    kept = [i for i in range(len(_HEADER)) if any(row[i] for row in rows)]
    wide: list[list[str | Text]] = []
    narrow: list[list[str | Text]] = []
    for row in rows:
        number, name, step, shape, adapters, *figures = row
        title = Text(name, style="bold" if number == "0" else "cyan")
        wide.append([title if i == 1 else row[i] for i in kept])
        when = f"from step {step[5:]}" if step.startswith("from ") else f"step {step}"
        below = (when, shape, f"LoRA {adapters}" if adapters else "")
        narrow.append([number, stacked(title, *below), *figures])
    columns = [(name, _KINDS[i]) for i, name in enumerate(_HEADER)]
    few = [*columns[:2], *columns[5:]]
    table = Responsive("", Form([columns[i] for i in kept], wide), Form(few, narrow))
    told = [Text(line) for line in _summary(outlook)]
    if advice:
        told += [Text(), Text("Advice", style="bold"), *(Text(f"- {each}") for each in advice)]
    return Group(*(Text(fact) for fact in facts), table, *told)


def _rows(outlook: Outlook) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    adapted = any(each.phase.lora_modules for each in outlook.prospects)
    previous: dict[str, Any] = {}
    for each in outlook.prospects:
        phase, settings = each.phase, each.phase.settings.to_dict()
        name = "start" if phase.operation is None else operation_text(phase.operation, phase.value)
        changes = setting_changes(previous, settings) if previous else []
        said = ", ".join(f"{what} {how}" for what, how in changes)
        repeats = ", repeated" if phase.repeats else ""
        shape = size_text({key: getattr(phase, key) for key in ("layers", "hidden", "mlp")})
        adapters = adapters_text({key: getattr(phase, key) for key in FACTS}, short=True) or "none"
        rows.append(
            (
                str(phase.index),
                clean(name) + (f" ({said})" if said else "") + repeats,
                _when(each),
                shape,
                adapters if adapted else "",
                count(phase.parameters),
                "all" if phase.trainable == phase.parameters else count(phase.trainable),
                count(each.flops_per_token(outlook.conditions.length)),
                size(each.memory.total),
            )
        )
        previous = settings
    return rows


def _when(each: Prospect) -> str:
    if each.by_length:
        return "by the length"
    if each.latest is None:
        return f"from {each.soonest:,}"
    return f"{each.soonest:,}" if each.latest <= each.soonest else f"{each.soonest:,} to {each.latest:,}"


def _summary(outlook: Outlook) -> list[str]:
    largest = max((each.memory for each in outlook.prospects), key=lambda memory: memory.total)
    lines = [
        f"Memory at most {size(largest.total)} a device: weights {size(largest.weights)}, gradients "
        f"{size(largest.gradients)}, optimizer {size(largest.optimizer)}, activations {size(largest.activations)}. "
        "Of tensors, as on a CPU; a process has more: libraries, and what its allocator keeps."
    ]
    early, late = outlook.cost(late=False), outlook.cost(late=True)
    if outlook.conditions.steps is None:
        lines.append("Cost: give the length of the run (--max_steps) to see it.")
    elif early is None:
        lines.append("Cost: nothing tells when the operations come.")
    elif late is None:
        lines.append(f"Cost: at most {_cost(early.flops, early.grown)}, if every operation comes as soon as it can.")
    elif late == early:
        lines.append(f"Cost: {count(late.tokens)} tokens, {_cost(late.flops, late.grown)}.")
    else:
        lines.append(f"Cost, operations as late as they can: {_cost(late.flops, late.grown)}.")
        lines.append(f"Cost, operations as soon as they can: {_cost(early.flops, early.grown)}.")
    last = outlook.prospects[-1]
    if last.latest is not None and len(outlook.prospects) > 1:
        repeated = " (first round)" if last.phase.repeats else ""
        lines.append(f"The last operation{repeated} comes at step {last.latest:,} at the latest.")
    return lines


def _cost(flops: float, grown: float) -> str:
    share = f"{flops / grown:.0%} of training the last model on as many tokens"
    return f"{scaled_text(flops)}FLOP, {share} ({scaled_text(grown)}FLOP)"


def size(number: float) -> str:
    """Bytes as people say them: 1.23 GiB, 45.6 MiB."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= 0.9995 * factor:
            return f"{number / factor:#.3g}".rstrip(".") + f" {unit}"
    return f"{number:.0f} bytes"
