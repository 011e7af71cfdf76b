"""What a token costs, by phase, written beside the statistics while torch is at hand: `stats/work.json`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphing_trainer.errors import MorphError
from morphing_trainer.reporting.records import Record
from morphing_trainer.run.journal import Event, effective, read_events

if TYPE_CHECKING:
    from morphing_trainer.lineage import ModelSpec


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
