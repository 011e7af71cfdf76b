"""What becomes of a schedule where guards have undone operations: checked before the first step, as all of it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from morphing_trainer.errors import Problem, ScheduleError
from morphing_trainer.schedule import Entry, Schedule
from morphing_trainer.schedule_entry import Path

MOST = 16
"""So many guarded operations are left out one by one; more only all together."""


def check_alternatives(schedule: Schedule, play: Callable[[Schedule], object]) -> None:
    """Refuse a schedule in which what comes after a guarded operation cannot do without it.

    Args:
        play: plays a schedule through, and raises `ScheduleError` if it does not fit.

    Raises:
        ScheduleError: naming what does not fit, and without which operation.
    """
    guarded = dict(_undoable([*schedule.entries, *schedule.cycle]))
    choices = [{place: name} for place, name in list(guarded.items())[:MOST]]
    if len(guarded) > 1:
        choices.append(guarded)
    problems: dict[tuple[str, str], Problem] = {}
    for without in choices:
        try:
            play(left_out(schedule, without))
        except ScheduleError as error:
            names = ", ".join(dict.fromkeys(without.values()))
            for problem in error.problems:
                what = f"does not fit if the guarded {names} before it is rolled back: {problem.what}"
                problems.setdefault((problem.where, problem.what), Problem(problem.where, what))
    if problems:
        raise ScheduleError(problems.values())


def left_out(schedule: Schedule, places: Collection[Path]) -> Schedule:
    """The schedule without the operations at `places`; the numbers of those that are written out stay."""

    def done(entry: Entry) -> Entry:
        return replace(entry, terms=entry.terms.model_copy(update={"completed": True}))

    entries = tuple(done(entry) if entry.place.path in places else entry for entry in schedule.entries)
    cycle = tuple(entry for entry in schedule.cycle if entry.place.path not in places)
    return replace(schedule, entries=entries, cycle=cycle)


def _undoable(entries: Collection[Entry]) -> Iterator[tuple[Path, str]]:
    """Place and name of the operations that may be rolled back."""
    for entry in entries:
        if entry.guard is not None and entry.guard.otherwise == "rollback" and not entry.completed:
            yield entry.place.path, entry.operation.name
