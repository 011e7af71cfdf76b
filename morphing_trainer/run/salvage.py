"""What can be read of a run, however much of it is damaged: for those who ask how it stands, and repair nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from morphing_trainer.checkpoint.store import checkpoints
from morphing_trainer.errors import ConfigError, MorphError
from morphing_trainer.reading import read_json
from morphing_trainer.reporting.records import Record
from morphing_trainer.reporting.run_data import AXES, is_number
from morphing_trainer.run.folder import HISTORY, JOURNAL, STATS, is_run
from morphing_trainer.run.history import read_lines
from morphing_trainer.run.journal import Event, effective, read_events, record_from, records
from morphing_trainer.run.progress import PROGRESS, read_progress
from morphing_trainer.run.reading import check_folder, rewound

_MOST = 2**62
"""More than any count of a run."""
_PLACES = frozenset({"epoch", *(axis.key for axis in AXES.values())})
_WRONG = (OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


@dataclass
class Remains:
    """Of a run's folder.

    Attributes:
        told: all events of its journal.
        events: those that led to the run as it is.
        records: its operations.
        lines: its log lines.
        progress: where it says that it stands; empty if it does not.
        faults: what could not be read, in words.
    """

    told: list[Event] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    progress: Mapping[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def places(self) -> list[Mapping[str, Any]]:
        """What tells how far the run is, the furthest first: the last log line may be ahead of `progress`."""
        told = [self.progress, self.lines[-1] if self.lines else {}]
        return sorted(told, key=lambda place: whole(place.get("step")) or 0, reverse=True)


def check_run(folder: Path) -> None:
    """Refuse what is no folder of a run.

    Raises:
        ConfigError: saying what it is.
    """
    check_folder(folder)
    if not is_run(folder):
        inside = sorted(path.name for path in folder.glob("*/") if is_run(path))
        hint = f"runs are in it: {', '.join(inside[:8])}" if inside else "give an output_dir"
        what = f"is not the folder of a run: neither {JOURNAL} nor a checkpoint is in it"
        raise ConfigError(f"{folder}: {what}; {hint}.")


def salvaged(folder: Path) -> Remains:
    """What can be read of the run in `folder`.

    Raises:
        ConfigError: if it is none.
    """
    found = salvaged_journal(folder)
    _read_lines(folder, found)
    try:
        found.progress = read_progress(folder / STATS / PROGRESS)
    except _WRONG as error:
        found.faults.append(f"{STATS}/{PROGRESS} cannot be read ({error}); it is written again while the run goes on")
    return found


def salvaged_journal(folder: Path) -> Remains:
    """Of that only what the journal tells.

    Raises:
        ConfigError: if it is no run.
    """
    check_run(folder)
    found = Remains()
    _read_journal(folder, found)
    return found


def _read_journal(folder: Path, found: Remains) -> None:
    path, name = folder / JOURNAL, JOURNAL
    if not path.exists():
        copies = [saved / JOURNAL for saved in checkpoints(folder) if (saved / JOURNAL).is_file()]
        if not copies:
            found.faults.append(f"{JOURNAL} is missing")
            return
        path, name = copies[0], f"{copies[0].parent.name}/{JOURNAL}"
        found.faults.append(f"{JOURNAL} is missing; what follows is from the copy in {copies[0].parent.name}")
    try:
        told, faults = read_events(path)
    except OSError as error:
        found.faults.append(f"{name} cannot be read ({error.strerror or error})")
        return
    for number, event in enumerate(told, 1):
        if fault := _fault(event):
            faults.append(f"event {number} ({str(event['event'])[:40]}): {fault}")
        else:
            found.told.append(event)
    found.faults += [f"{name}: {fault}; it is left out" for fault in faults[:3]]
    if len(faults) > 3:
        found.faults.append(f"{name}: {len(faults) - 3} more lines are damaged and left out")
    try:
        found.events = effective(found.told)
        found.records = records(found.events)
    except _WRONG as error:
        found.faults.append(f"{name}: what was undone cannot be told ({error}); all that it tells is shown")
        found.events = list(found.told)
        found.records = [record_from(event["record"]) for event in found.told if event["event"] == "operation"]


def _fault(event: Mapping[str, Any]) -> str | None:
    """What is wrong with an event that is told in full by others of its name."""
    if not isinstance(event.get("step"), int) or whole(event["step"]) is None:
        return "has no step"
    if event["event"] in ("resume", "rolled_back", "returned") and not isinstance(event.get("done"), int):
        return "does not say how many operations are done"
    if event["event"] in ("operation", "evaluation") and not isinstance(event.get("index"), int):
        return "does not say of which operation"
    if event["event"] == "evaluation" and not isinstance(event.get("loss"), int | float | str):
        return "has no loss"
    if event["event"] == "operation":
        try:
            record_from(event["record"])
        except (*_WRONG, MorphError) as error:
            return f"is not one that this library wrote ({str(error)[:120]})"
    return None


def _read_lines(folder: Path, found: Remains) -> None:
    path, name = folder / STATS / HISTORY, f"{STATS}/{HISTORY}"
    try:
        if path.is_file():
            lines, faults = read_lines(path)
            found.lines = _sound(lines)
            if faults:
                many = f"{len(faults)} lines are" if len(faults) > 1 else "1 line is"
                found.faults.append(f"{name}: {many} damaged and left out, the first is {faults[0][:160]}")
            return
    except _WRONG as error:
        found.faults.append(f"{name} cannot be read ({error})")
    for saved in checkpoints(folder):
        lines = _saved_lines(saved)
        if lines:
            found.lines = lines
            return


def _saved_lines(checkpoint: Path) -> list[dict[str, Any]]:
    """Those that a checkpoint knows; none if it is damaged."""
    try:
        lines: Sequence[Any] = read_json(checkpoint / "trainer_state.json")["log_history"]
        return _sound([line for line in lines if isinstance(line, dict)])
    except _WRONG:
        return []


def _sound(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that lead to the run as it is, without what is no place on an axis, or larger than any number of a run."""
    placed = [line for line in lines if whole(line.get("step")) is not None]
    return rewound([{key: value for key, value in line.items() if _plausible(key, value)} for line in placed])


def _plausible(key: str, value: Any) -> bool:
    if not is_number(value):
        return key not in _PLACES
    found = number(value)
    return found is not None and (key not in _PLACES or 0 <= found < math.inf)


def number(value: Any) -> float | None:
    """A number of a file, None if it is none."""
    return float(value) if is_number(value) and not (isinstance(value, int) and abs(value) > _MOST) else None


def whole(value: Any) -> int | None:
    """A count of a file, None if it is none."""
    found = number(value)
    return int(found) if found is not None and 0 <= found <= _MOST else None
