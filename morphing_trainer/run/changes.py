"""The operations of a run from its events: those that stand, and those that were rolled back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from morphing_trainer.reporting.journal import Change
from morphing_trainer.run.journal import Event, record_from


def changes_of(events: Iterable[Event], told: Sequence[Event]) -> list[Change]:
    """All operations, in the order in which they were applied.

    Args:
        events: those that led to the run as it is, see `run.timeline`.
        told: all events: what an operation that was rolled back had done, its own event tells, which counts no more.
    """
    found: list[Change] = []
    for event in events:
        if event["event"] == "operation":
            found.append(Change(record_from(event["record"]), str(event.get("time", ""))))
        elif event["event"] == "evaluation":
            found = [_evaluated(change, event) for change in found]
        elif event["event"] == "rolled_back":
            number = next(number for number, other in enumerate(told) if other is event)
            tries = [old for old in told[:number] if old["event"] == "operation" and old["index"] == event.get("index")]
            if tries:
                found.append(Change(record_from(tries[-1]["record"]), str(tries[-1].get("time", "")), undone=event))
    return found


def _evaluated(change: Change, event: Event) -> Change:
    """An operation and the first evaluation after it."""
    record, loss = change.record, float(event["loss"])
    if record.index != event["index"] or change.undone is not None:
        return change
    if event["step"] > record.step:
        return replace(change, later=loss)
    return replace(change, record=replace(record, after={**record.after, "loss": loss}))
