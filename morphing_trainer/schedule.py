"""The schedule: operations in order, each with its trigger. First in, first out."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from morphing_trainer.documents import load_document
from morphing_trainer.errors import Problem, ScheduleError
from morphing_trainer.operations import Operation
from morphing_trainer.schedule_entry import Entry, Source
from morphing_trainer.schedule_reader import END, read_schedule
from morphing_trainer.triggers import Clock


@dataclass(frozen=True)
class Schedule:
    """An immutable list of entries. Where a run stands in it is kept in a `Position`.

    `Schedule.load(path)` reads YAML or JSON; `Schedule.of(...)` takes a path, a list of mappings or a schedule.

    Attributes:
        entries: what is done once, or a number of times, each time written out.
        cycle: what is repeated after that for as long as the run lasts (`repeat: end`).
    """

    entries: tuple[Entry, ...] = ()
    cycle: tuple[Entry, ...] = ()
    source: Source = field(default_factory=lambda: Source("schedule"), compare=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Schedule:
        """Read a YAML or JSON file.

        Raises:
            ScheduleError: listing every problem of the file with its line.
            DocumentError: if the file cannot be read at all.
        """
        document = load_document(path)
        return cls.read(document.data, Source(str(path), document.lines), document.problems)

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
        return cls.read(value, Source("schedule"))

    @classmethod
    def read(cls, data: Any, source: Source, faults: Sequence[Problem] = ()) -> Schedule:
        """A schedule from plain data that was read from `source`.

        Raises:
            ScheduleError: listing every problem, and `faults`.
        """
        reading = read_schedule(data, source)
        if problems := [*faults, *reading.problems]:
            raise ScheduleError(problems)
        return cls(reading.entries, reading.cycle, reading.source)

    def __len__(self) -> int:
        """Number of operations, those of the endless part counted once."""
        return len(self.entries) + len(self.cycle)

    def at(self, index: int) -> Entry | None:
        """Operation `index` of a run, counted from 0 and on through the endless part; None behind the last."""
        if index < len(self.entries):
            return self.entries[index]
        if not self.cycle:
            return None
        rounds, part = divmod(index - len(self.entries), len(self.cycle))
        entry = self.cycle[part]
        return replace(entry, place=replace(entry.place, round=rounds + 1))

    def where(self, index: int, *fields: str | int) -> str:
        """Where field `fields` of operation `index` stands, in words."""
        entry = self.at(index)
        assert entry is not None
        return (entry.source or self.source).entry(entry.place, entry.operation.name, *fields)

    def written(self) -> Iterator[tuple[int, Entry]]:
        """Every operation as it was written, with its index; of what repeats, the first round."""
        for index in range(len(self)):
            entry = self.at(index)
            assert entry is not None
            if entry.place.round in (None, 1):
                yield index, entry

    def to_list(self) -> list[dict[str, Any]]:
        """Plain data that `of` reads back as an equal schedule."""
        endless = [{"repeat": END, "operations": [entry.to_dict() for entry in self.cycle]}] if self.cycle else []
        return [*(entry.to_dict() for entry in self.entries), *endless]

    @property
    def digest(self) -> str:
        """SHA-256 over the entries' canonical JSON."""
        return hashlib.sha256(json.dumps(self.to_list(), sort_keys=True).encode()).hexdigest()


def ahead(listed: Sequence[Mapping[str, Any]], done: int) -> list[Mapping[str, Any]]:
    """What of a schedule, as `to_list` writes it, comes after its first `done` operations."""
    if not listed or "repeat" not in listed[-1]:
        return list(listed[done:])
    entries, cycle = listed[:-1], listed[-1]["operations"]
    turn = max(0, done - len(entries)) % len(cycle)
    return [*entries[done:], {**listed[-1], "operations": [*cycle[turn:], *cycle[:turn]]}]


@dataclass(frozen=True)
class Position:
    """Where a run stands in its schedule. Plain JSON.

    Attributes:
        done: operations that are behind the run, executed or marked `completed`.
        since: optimizer step of the last operation, 0 at the start.
        pending: why the entry at `done` is due, when it has been decided but not yet applied.
    """

    done: int = 0
    since: int = 0
    pending: str | None = None

    def settle(self, schedule: Schedule) -> Position:
        """Step over entries marked `completed`."""
        done = self.done
        while (entry := schedule.at(done)) and entry.completed:  # nothing in the endless part is
            done += 1
        return replace(self, done=done)

    def upcoming(self, schedule: Schedule) -> Entry | None:
        return schedule.at(self.done)

    def ask(self, schedule: Schedule, clock: Clock) -> str | None:
        """Why the next operation is due at this tick, or None."""
        entry = self.upcoming(schedule)
        return entry.trigger.due(clock) if entry else None

    def applied(self, schedule: Schedule, step: int) -> Position:
        """The position behind the operation that was just applied."""
        return Position(self.done + 1, step).settle(schedule)


__all__ = ["Entry", "Operation", "Position", "Schedule", "ahead"]
