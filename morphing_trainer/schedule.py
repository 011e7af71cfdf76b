"""The schedule: operations in order, each with its trigger. First in, first out."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from morphing_trainer.documents import load_document
from morphing_trainer.errors import ScheduleError
from morphing_trainer.operations import Operation
from morphing_trainer.schedule_reader import Entry, Source, read_entries
from morphing_trainer.triggers import Clock


@dataclass(frozen=True)
class Schedule:
    """An immutable list of entries. Where a run stands in it is kept in a `Position`.

    `Schedule.load(path)` reads YAML or JSON; `Schedule.of(...)` takes a path, a list of mappings or a schedule.
    """

    entries: tuple[Entry, ...] = ()
    source: Source = field(default_factory=lambda: Source("schedule"), compare=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Schedule:
        """Read a YAML or JSON file.

        Raises:
            ScheduleError: listing every problem of the file with its line.
            DocumentError: if the file cannot be read at all.
        """
        document = load_document(path)
        entries, source, problems = read_entries(document.data, Source(str(path), document.lines))
        if problems := [*document.problems, *problems]:
            raise ScheduleError(problems)
        return cls(tuple(entries), source)

    @classmethod
    def of(cls, value: Schedule | str | os.PathLike[str] | Sequence[Any] | Mapping[str, Any] | None) -> Schedule:
        """A schedule from a path, a list of entries (or mapping with `operations`), a schedule, or None for none.

        Raises:
            ScheduleError, DocumentError: as `load`.
        """
        if value is None:
            return cls()
        if isinstance(value, Schedule):
            return value
        if isinstance(value, str | os.PathLike):
            return cls.load(value)
        entries, source, problems = read_entries(value, Source("schedule"))
        if problems:
            raise ScheduleError(problems)
        return cls(tuple(entries), source)

    def __len__(self) -> int:
        return len(self.entries)

    def to_list(self) -> list[dict[str, Any]]:
        """Plain data that `of` reads back as an equal schedule."""
        return [entry.to_dict() for entry in self.entries]

    @property
    def digest(self) -> str:
        """SHA-256 over the entries' canonical JSON."""
        return hashlib.sha256(json.dumps(self.to_list(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Position:
    """Where a run stands in its schedule. Plain JSON.

    Attributes:
        done: entries that are behind the run, executed or marked `completed`.
        since: optimizer step of the last operation, 0 at the start.
        pending: why the entry at `done` is due, when it has been decided but not yet applied.
    """

    done: int = 0
    since: int = 0
    pending: str | None = None

    def settle(self, schedule: Schedule) -> Position:
        """Step over entries marked `completed`."""
        done = self.done
        while done < len(schedule) and schedule.entries[done].completed:
            done += 1
        return replace(self, done=done)

    def upcoming(self, schedule: Schedule) -> Entry | None:
        return schedule.entries[self.done] if self.done < len(schedule) else None

    def ask(self, schedule: Schedule, clock: Clock) -> str | None:
        """Why the next operation is due at this tick, or None."""
        entry = self.upcoming(schedule)
        return entry.trigger.due(clock) if entry else None

    def applied(self, schedule: Schedule, step: int) -> Position:
        """The position behind the operation that was just applied."""
        return Position(self.done + 1, step).settle(schedule)


__all__ = ["Entry", "Operation", "Position", "Schedule"]
