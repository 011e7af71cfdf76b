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


class OutOfMemoryError(MorphError):
    """Memory ran out, and nothing more could be done about it."""


@dataclass(frozen=True)
class Problem:
    """One fault in a file: `where` (file, line, entry, field), `what` is wrong and what is expected."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class ScheduleError(MorphError):
    """Everything that is wrong with a schedule, all at once, in `problems`."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        assert self.problems, "a ScheduleError needs at least one problem"
        super().__init__("\n".join(str(problem) for problem in self.problems))


def suggest(name: str, valid: Iterable[str]) -> str:
    """A hint that names the valid name nearest to `name`: `"; did you mean 'x'?"`, or the choices if none is near."""
    choices = sorted(valid)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; valid are {', '.join(choices)}" if choices else ""
