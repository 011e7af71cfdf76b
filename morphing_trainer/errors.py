"""Every error a user can cause. All are `ValueError`s too, so existing handlers keep working.

A message says *where* the fault is, *what* is wrong, and *what to do instead*. `suggest` finds the
nearest valid name for a mistyped one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class MorphError(ValueError):
    """Base class of all errors raised for bad input."""


class ConfigError(MorphError):
    """A run config, command-line argument or `MorphingConfig` value is wrong."""


class ModelError(MorphError):
    """A model or its checkpoint cannot be loaded, or cannot be morphed by this library."""


class OperationError(MorphError):
    """An operation does not fit the model or the settings it is applied to."""


class DataError(MorphError):
    """A dataset, text file or tokenizer is missing, empty, too short or does not fit the model."""


class CheckpointError(MorphError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class StorageError(MorphError, OSError):
    """What a run has to write cannot be written: the disk is full, or the folder is gone or may not be changed."""


class GuardError(MorphError):
    """A guarded operation has not worked out, and the run ends."""


class NotFiniteError(MorphError):
    """A loss or gradient is NaN or infinite, and the run ends."""


class HubError(MorphError):
    """The Hub has refused something, or cannot be reached. `passing`: another attempt later may succeed."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class OutOfMemoryError(MorphError):
    """Memory ran out, and nothing more could be done about it."""


MOST_TEXT = 2_000
"""Of what is wrong in one place; a file may hold names of any length."""


@dataclass(frozen=True)
class Problem:
    """One fault in a file: `where` (file, line, entry, field), `what` is wrong and what is expected."""

    where: str
    what: str

    def __str__(self) -> str:
        where, what = (text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}..." for text in (self.where, self.what))
        return f"{where}: {what}" if where else what


MOST_PROBLEMS = 100
"""Of those that are told at once: who has read so many has enough to do."""


def listed(problems: Iterable[Problem]) -> str:
    """Problems, a line each."""
    lines = [str(problem) for problem in problems]
    more = len(lines) - MOST_PROBLEMS
    return "\n".join([*lines[:MOST_PROBLEMS], *([f"... and {more:,} more"] if more > 0 else [])])


class ScheduleError(MorphError):
    """Everything that is wrong with a schedule, all at once, in `problems`."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        assert self.problems, "a ScheduleError needs at least one problem"
        super().__init__(listed(self.problems))


def suggest(name: str, valid: Iterable[str]) -> str:
    """A hint that names the valid name nearest to `name`: `"; did you mean 'x'?"`, or the choices if none is near."""
    choices = sorted(valid)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; valid are {', '.join(choices)}" if choices else ""
