"""What a run has tried and undone: the operations whose guards have failed, for the summary at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from morphing_trainer.reporting.console import clean, loss_text


def undone_lines(rolled_back: Sequence[Mapping[str, Any]]) -> list[str]:
    """A heading, and a line for each operation that was undone; nothing without any.

    Args:
        rolled_back: `operation`, `step`, `until`, losses `before`, `loss` and `limit`, and `reason` of each, as the
            journal has them: numbers that are not finite may be text.
    """
    if not rolled_back:
        return []
    many = f"{len(rolled_back)} operations" if len(rolled_back) > 1 else "1 operation"
    return [f"{many} undone by {'their guards' if len(rolled_back) > 1 else 'its guard'}", *map(_line, rolled_back)]


def _line(event: Mapping[str, Any]) -> str:
    before, loss, limit = (_loss(event.get(name)) for name in ("before", "loss", "limit"))
    why = event.get("reason") or f"evaluation loss {before} before it, {loss} at step {event.get('until')}"
    allowed = "" if event.get("reason") else f", at most {limit} allowed"
    return clean(f"step {event.get('step')}: {event.get('operation')}: {why}{allowed}")


def _loss(value: Any) -> str:
    try:
        return loss_text(None if value is None else float(value))
    except (TypeError, ValueError):
        return "-"
