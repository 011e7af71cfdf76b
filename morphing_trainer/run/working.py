"""What a token costs, by phase, written beside the statistics while torch is at hand: `stats/work.json`.

`morph report` reads it in place of counting from the models' descriptions (`run.work`), which takes torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphing_trainer.errors import MorphError
from morphing_trainer.reading import read_json
from morphing_trainer.reporting.records import Record
from morphing_trainer.run.journal import Event, effective, read_events
from morphing_trainer.run.salvage import number

if TYPE_CHECKING:
    from morphing_trainer.lineage import ModelSpec


@dataclass(frozen=True)
class Stretch:
    """From so many `tokens` on, `cost` floating-point operations per token."""

    tokens: float
    cost: float


def spent(tokens: float, stretches: Sequence[Stretch]) -> float:
    """Floating-point operations of training on the first `tokens` tokens."""
    ends = [*(each.tokens for each in stretches[1:]), math.inf]
    return sum(each.cost * max(0.0, min(tokens, end) - each.tokens) for each, end in zip(stretches, ends, strict=True))


class Working:
    """The phases of the run in progress, on the main process."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._done: tuple[int, int] | None = None
        """Length, and number of phases, of what was told last."""

    def begin(self, journal: Path) -> None:
        """A run begins, is resumed or goes back: take up what its journal tells."""
        told = effective(read_events(journal)[0]) if journal.exists() else []
        self._events = [event for event in told if event["event"] in ("start", "operation")]
        self._done = None

    def add(self, record: Record, spec: ModelSpec) -> None:
        """An operation has been applied."""
        told = {"event": "operation", "step": record.step, "record": {"tokens": record.tokens}, "spec": spec.to_dict()}
        self._events.append(told)

    def content(self, length: float | None) -> dict[str, Any] | None:
        """The file's content: `length` of a sample, and of every phase `[tokens at which it began, cost per token]`.

        None where it is not known, as of a journal that is damaged, or if nothing has changed since it was asked for.
        """
        from morphing_trainer.run.work import stretches

        if length is None or (round(length), len(self._events)) == self._done:
            return None
        self._done = round(length), len(self._events)
        try:
            found = stretches(self._events, round(length))
        except (MorphError, LookupError, TypeError, ValueError):
            return None
        return {"length": round(length), "phases": [[each.tokens, each.cost] for each in found]}


def read_work(path: Path) -> list[Stretch]:
    """What a token has cost, from operation to operation; empty if the file is not there or not what a run writes."""
    try:
        phases: Any = read_json(path)["phases"]
        found = [(number(tokens), number(cost)) for tokens, cost in phases]
    except (OSError, ValueError, TypeError, LookupError):
        return []
    sound = [Stretch(tokens, cost) for tokens, cost in found if tokens is not None and cost is not None and cost >= 0]
    return sound if len(sound) == len(found) else []


def fits(phases: Sequence[Stretch], records: Sequence[Record]) -> bool:
    """Whether they are those of a run with these operations."""
    return [phase.tokens for phase in phases] == [0.0, *(float(record.tokens) for record in records)]
