"""The journal: one JSON line per event of a run, appended and never rewritten.

Events: `start`, `operation`, `evaluation` (the first after an operation), `analysis`, `resume`, `override`,
`out_of_memory` (a step was repeated with half the batch), `emergency` (a checkpoint was saved because memory was
short), `interrupted`, `failed`, `end`.
A run that crashed and resumed from an earlier checkpoint has written lines that never happened to the model:
`effective` leaves them out.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from morphing_trainer.errors import CheckpointError
from morphing_trainer.reporting.records import Record

Event = dict[str, Any]

_UNDONE = ("operation", "evaluation", "analysis", "out_of_memory", "emergency", "end", "interrupted")
"""Events that a resume from an earlier step leaves behind."""


class Journal:
    """Appends events to a file. Does nothing when `path` is None (on all processes but the main one)."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def write(self, event: str, step: int, **facts: Any) -> None:
        """Append one event and make sure that it is on disk."""
        if self.path is None:
            return
        line = {"event": event, "step": step, "time": datetime.now(UTC).isoformat(timespec="seconds"), **facts}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _mend(self.path)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_plain(line), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _mend(path: Path) -> None:
    """End a last line that a crash left without its end, or the next event would be written into it.

    A whole event gets its line end; part of one is cut off.
    """
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        text = file.read()
        start = text.rfind(b"\n") + 1
        try:
            json.loads(text[start:])
            file.write(b"\n")
        except ValueError:
            file.truncate(start)


def read_journal(path: Path) -> list[Event]:
    """All events of a journal. A last line cut short by a crash is left out.

    Raises:
        CheckpointError: if another line is not an event.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    events: list[Event] = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            if not isinstance(event, dict) or not isinstance(event.get("event"), str):
                raise ValueError("not an event")
            events.append(event)
        except ValueError as error:
            if number == len(lines):
                break
            raise CheckpointError(f"{path}:{number}: is not a journal line ({error}); restore the file") from error
    return events


def effective(events: Iterable[Event]) -> list[Event]:
    """The events that lead to the run as it is: a resume from step k undoes operations noted at later steps.

    An operation noted at step k itself is undone too if the checkpoint was saved before it (`done` counts them).
    """
    kept: list[Event] = []
    for event in events:
        if event["event"] == "resume":
            step, done = int(event["step"]), int(event["done"])
            kept = [
                old
                for old in kept
                if old["event"] not in _UNDONE or (old["step"] <= step and int(old.get("index", -1)) < done)
            ]
        kept.append(event)
    return kept


def records(events: Iterable[Event]) -> list[Record]:
    """The operations among `events`, with the losses that were measured after them."""
    found: dict[int, Record] = {}
    for event in events:
        if event["event"] == "operation":
            found[event["index"]] = record_from(event["record"])
        elif event["event"] == "evaluation" and event["index"] in found:
            record = found[event["index"]]
            found[event["index"]] = record_from({**record.to_dict(), "after": {**record.after, "loss": event["loss"]}})
    return [found[index] for index in sorted(found)]


def record_from(data: Mapping[str, Any]) -> Record:
    """A record from plain data.

    Raises:
        CheckpointError: if it is malformed.
    """
    try:
        record = Record(**data)
        return replace(record, before=_numeric(record.before), after=_numeric(record.after))
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"journal: an operation is not one that this library wrote ({error})") from error


def _numeric(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """The facts with a loss that was written as text (see `_plain`) as a number."""
    return {**facts, "loss": float(facts["loss"])} if isinstance(facts.get("loss"), str) else facts


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: write them as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
