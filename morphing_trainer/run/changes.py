"""The operations of a run from its events: those that stand, and those that were rolled back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from morphing_trainer.reporting.journal import Change
from morphing_trainer.reporting.records import Record
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
            found = [change if change.undone else evaluated(change, event) for change in found]
        elif event["event"] == "rolled_back":
            number = next(number for number, other in enumerate(told) if other is event)
            tries = [old for old in told[:number] if old["event"] == "operation" and old["index"] == event.get("index")]
            if tries:
                found.append(Change(record_from(tries[-1]["record"]), str(tries[-1].get("time", "")), undone=event))
    return found


def operations_of(events: Iterable[Event]) -> tuple[list[Record], dict[int, float]]:
    """The operations that stand, and by index the losses of those that were evaluated after more training.

    Args:
        events: those that led to the run as it is.
    """
    found: list[Change] = []
    for event in events:
        if event["event"] == "operation":
            found.append(Change(record_from(event["record"])))
        elif event["event"] == "evaluation":
            found = [evaluated(change, event) for change in found]
    return [change.record for change in found], {
        change.record.index: change.later for change in found if change.later is not None
    }


def evaluated(change: Change, event: Event) -> Change:
    """An operation, and an evaluation after it: the first one counts.

    An event names the last operation before it. All that had none before share it: it is the first one after them, too.
    """
    record, loss = change.record, float(event["loss"])
    if record.index > event["index"] or change.later is not None or record.after.get("loss") is not None:
        return change
    if event["step"] > record.step:
        return replace(change, later=loss)
    return replace(change, record=replace(record, after={**record.after, "loss": loss}))
