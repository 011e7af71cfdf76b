"""The journal: one JSON line per event of a run, appended and never rewritten.

Events: `start`, `operation`, `evaluation` (the first after an operation), `analysis`, `resume`, `override`,
`out_of_memory` (a step was repeated with half the batch), `emergency` (a checkpoint was saved because memory was
short), `guard_closed` (a guarded operation has worked out), `rolled_back` (it has not, and was undone), `guard_failed`
(it has not, and the run ended), `skipped_step` (the update of a step that was not finite was left out), `returned` (the
run went back to a checkpoint because of such a step), `interrupted`, `failed`, `end`.
A run that crashed and resumed from an earlier checkpoint has written lines that never happened to the model. They are
those behind the first `events` ones, which the checkpoint knows; a `resume`, `rolled_back` or `returned` says how many.
`effective`, in `run.timeline`, leaves them out.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from morphing_trainer.errors import CheckpointError, StorageError
from morphing_trainer.reporting.records import Record
from morphing_trainer.reporting.run_data import is_number
from morphing_trainer.run.timeline import Event, effective

__all__ = [
    "Event",
    "Journal",
    "effective",
    "go_on_from",
    "read_events",
    "read_journal",
    "record_from",
    "records",
    "sound_lines",
]

_log = logging.getLogger("morphing_trainer")


class Journal:
    """Appends events to a file. Does nothing when `path` is None (on all processes but the main one)."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._held: BinaryIO | None = None

    def write(self, event: str, step: int, **facts: Any) -> None:
        """Append one event and make sure that it is on disk.

        Raises:
            StorageError: if it cannot be written.
        """
        if self.path is None:
            return
        line = {"event": event, "step": step, "time": datetime.now(UTC).isoformat(timespec="seconds"), **facts}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.restore()
            _mend(self.path)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_plain(line), allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(
                f"{self.path}: the journal cannot be written ({error.strerror or error}), so the run ends at step "
                f"{step}. Make room, or make the folder writable, and resume."
            ) from error

    def hold(self) -> None:
        """Keep the file open until `close`, so that `restore` can bring it back."""
        self.close()
        if self.path is not None:
            self._held = self.path.open("rb")

    def restore(self) -> None:
        """Bring the file back if somebody has removed it since `hold`."""
        if self.path is None or self._held is None or self.path.exists():
            return
        _log.warning("%s has been removed while the run goes on; it is written again", self.path)
        self._held.seek(0)
        content = self._held.read()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(content)
        self.hold()

    def close(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None


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
    events, faults = read_events(path)
    if faults:
        raise CheckpointError(f"{path}:{faults[0]}; restore the file")
    return events


def sound_lines(path: Path) -> bytes:
    """What is sound of a journal (nothing, if there is none), for a checkpoint, into which no damage must spread."""
    if not path.exists():
        return b""
    _, faults = read_events(path)
    raw = path.read_bytes()
    if not faults:
        return raw
    _log.warning("%s:%s; the checkpoint's copy leaves it out (%d in all)", path, faults[0], len(faults))
    bad = {int(fault.split(":")[0]) for fault in faults}
    return b"".join(line for number, line in enumerate(raw.splitlines(keepends=True), 1) if number not in bad)


def go_on_from(copy: Path, path: Path) -> str | None:
    """Make the journal at `path` one that goes on from a checkpoint's copy. Returns what was wrong with it, or None.

    A journal only grows, so it begins with what the copy holds. One that does not is damaged or of another run: it is
    put aside, and the copy takes its place.
    """
    fault = None
    if path.exists():
        try:
            before = read_journal(copy)
            if read_journal(path)[: len(before)] == before:
                return None
            fault = f"{path}: does not go on from {copy}"
        except (CheckpointError, OSError) as error:
            fault = str(error)
        number = next(number for number in itertools.count(1) if not _aside(path, number).exists())
        path.rename(_aside(path, number))
        fault += f". It is kept as {_aside(path, number).name}, and the journal goes on from the checkpoint's copy"
    path.write_bytes(copy.read_bytes())
    return fault


def _aside(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-damaged-{number}{path.suffix}")


def read_events(path: Path) -> tuple[list[Event], list[str]]:
    """All events, and what is wrong with lines that are none, each with its number. A last line may be cut short."""
    lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    events: list[Event] = []
    faults = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            if not isinstance(event, dict) or not isinstance(event.get("event"), str):
                raise ValueError("not an event")
            events.append(event)
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                faults.append(f"{number}: is not a journal line ({error})")
    return events, faults


def records(events: Iterable[Event]) -> list[Record]:
    """The operations among `events`, with the losses that were measured right after them; see `run.changes`."""
    found: dict[int, Record] = {}
    for event in events:
        if event["event"] == "operation":
            found[event["index"]] = record_from(event["record"])
        elif event["event"] == "evaluation" and event["index"] in found:
            record = found[event["index"]]
            if event["step"] > record.step:
                continue  # it tells of what has been trained since, too
            found[event["index"]] = record_from({**record.to_dict(), "after": {**record.after, "loss": event["loss"]}})
    return [found[index] for index in sorted(found)]


def record_from(data: Mapping[str, Any]) -> Record:
    """A record from plain data.

    Raises:
        CheckpointError: if it is malformed.
    """
    try:
        record = Record(**data)
        _check(record)
        return replace(record, before=_numeric(record.before), after=_numeric(record.after))
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"journal: an operation is not one that this library wrote ({error})") from error


def _check(record: Record) -> None:
    """Raises TypeError if a field that is drawn or computed with is of another kind than a record's."""
    numbers = [(name, getattr(record, name)) for name in ("index", "step", "tokens", "seconds")]
    numbers += record.moments.items()
    for facts in (record.before, record.after):
        numbers += [(name, value) for name, value in facts.items() if value is not None and name != "loss"]
        numbers += [(name, facts.get(name, 0)) for name in ("layers", "hidden", "mlp", "parameters", "trainable")]
    texts = [(name, getattr(record, name)) for name in ("operation", "trigger", "note")]
    strangers = [each for each in numbers if not is_number(each[1])]
    strangers += [each for each in texts if not isinstance(each[1], str)]
    if strangers:
        raise TypeError(f"{strangers[0][0]} is {strangers[0][1]!r:.50}")


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
