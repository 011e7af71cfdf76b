"""Which events of a journal led to the run as it is. No files.

A run that goes on from a checkpoint has left behind whatever it noted after that was saved. The event with which it
goes on says how many `events` the checkpoint's own journal holds: what counted of them then counts, and what came after
them does not. Journals of before that number was noted are cut by step, and by the number of operations `done`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Event = dict[str, Any]

_UNDONE = (
    *("operation", "evaluation", "analysis", "out_of_memory", "emergency", "end", "interrupted", "stage"),
    *("guard_closed", "rolled_back", "guard_failed", "skipped_step", "returned", "stopped_early"),
)
"""Events that a resume from an earlier step leaves behind."""

_BACK = ("resume", "rolled_back", "returned")
"""Events with which the run goes on from a checkpoint: of `step`, with so many operations `done`."""

_OUTWARD = ("emergency", "interrupted", "end")
"""Events that tell of a step's end from outside: a resume from that very step leaves them standing."""

_ONCE = {
    **dict.fromkeys(("evaluation", "guard_closed", "rolled_back", "guard_failed"), ("step", "index")),
    **dict.fromkeys(("analysis", "skipped_step", "stopped_early", "end"), ("step",)),
    "returned": ("step", "bad"),
    "stage": ("name",),
}
"""What tells two events of a name apart, where the same one may be noted again after a crash."""


def effective(events: Iterable[Event]) -> list[Event]:
    """The events that lead to the run as it is, each of them once: of those noted again, the last."""
    told = list(events)
    wanted = {number for number in map(_known, told) if number is not None}
    kept: list[Event] = []
    at: dict[int, list[Event]] = {}
    """Number of events -> those of them that counted then."""
    undone: dict[int, tuple[Event, list[Event]]] = {}
    """Operation -> its last rolling back, and what that has left behind."""
    for number, event in enumerate(told):
        if number in wanted:
            at[number] = list(kept)
        known = _known(event)
        if known is not None and known <= number:
            known_of = {id(old) for old in told[:known]}
            step = int(event["step"])
            later = [old for old in kept if id(old) not in known_of and _stands(old, step)]
            kept = at[known] + later
        elif event["event"] in _BACK:
            kept = _cut(kept, event, undone)
        kept.append(event)
    return _once(kept)


def _known(event: Mapping[str, Any]) -> int | None:
    """How many events the checkpoint knew that the run goes on from with this one; None if that is not told."""
    number = event.get("events") if event["event"] in _BACK else None
    return number if isinstance(number, int) and number >= 0 else None


def _stands(event: Event, step: int) -> bool:
    """Whether an event counts that was noted after the checkpoint of `step` from which the run goes on."""
    return event["event"] not in _UNDONE or (event["event"] in _OUTWARD and int(event["step"]) <= step)


def _cut(kept: list[Event], event: Event, undone: dict[int, tuple[Event, list[Event]]]) -> list[Event]:
    """What counts of `kept` when the run goes on with `event`, which does not tell what its checkpoint knew.

    An operation noted at the checkpoint's own step is undone if it was saved before it (`done` counts them). If going
    back by itself came to no checkpoint, a resume finds the guard open again.
    """
    if event["event"] == "resume" and event.get("guard") in undone:
        back, left = undone.pop(event["guard"])
        kept = [old for old in kept if old is not back] + left
    step, done, before = int(event["step"]), int(event["done"]), kept
    kept = [
        old for old in kept if old["event"] not in _UNDONE or (old["step"] <= step and int(old.get("index", -1)) < done)
    ]
    if event["event"] == "rolled_back":
        stay = {id(old) for old in kept}
        undone[int(event["index"])] = event, [old for old in before if id(old) not in stay]
    return kept


def _once(events: list[Event]) -> list[Event]:
    """Of events that are the same but noted several times, the last one."""
    last: dict[Any, int] = {}
    for number, event in enumerate(events):
        last[_identity(event, number)] = number
    stay = set(last.values())
    return [event for number, event in enumerate(events) if number in stay]


def _identity(event: Event, number: int) -> tuple[Any, ...]:
    names = _ONCE.get(event["event"])
    return (number,) if names is None else (event["event"], *(repr(event.get(name)) for name in names))
