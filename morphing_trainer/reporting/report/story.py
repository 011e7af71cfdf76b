"""All that a report tells of a run: plain values, as `run.telling` reads them from its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from morphing_trainer.reporting.journal import Change
from morphing_trainer.reporting.records import Record
from morphing_trainer.reporting.run_data import is_number
from morphing_trainer.reporting.series import Points
from morphing_trainer.run.standing import Standing

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Story:
    """One run, however much of it is known.

    Attributes:
        name: of its folder.
        path: of its folder, as it was given.
        standing: where it stands; the speed and the time are of its log lines, so that they stay as they are.
        lines: its log lines, those that lead to the run as it is.
        changes: its operations, those that were undone among them, in the order in which they were applied.
        records: those that stand.
        events: of its journal, those that count.
        stages: name -> optimizer step at which the stage began; one entry for a run without a plan.
        timing: part -> seconds.
        totals: what it was trained on, as `stats/overall.json` has it under `train`.
        setup: what it was told and what it runs on, see `run.setup`; empty for runs of before that was noted.
        examples: of its evaluations, see `run.shown`.
        tokenizer: whether one is saved with the model.
        flops: floating-point operations so far, None if they are not known.
        exact: whether these are counted from the models' descriptions, or the Trainer's estimate.
        faults: what of the folder could not be read.
    """

    name: str
    path: str
    standing: Standing
    lines: Sequence[Facts] = ()
    changes: Sequence[Change] = ()
    records: Sequence[Record] = ()
    events: Sequence[Facts] = ()
    stages: Mapping[str, float] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=dict)
    totals: Facts = field(default_factory=dict)
    setup: Facts = field(default_factory=dict)
    examples: Sequence[Facts] = ()
    tokenizer: bool = False
    flops: float | None = None
    exact: bool = False
    faults: Sequence[str] = ()

    @cached_property
    def end(self) -> float:
        """The last step that there is to draw; at least 1."""
        steps = [float(self.standing.step), *(float(change.record.step) for change in self.changes), 1.0]
        return max([*steps, *(float(line["step"]) for line in self.lines[-1:])])

    @property
    def processes(self) -> int:
        """That train; 1 if it is not known."""
        found = self.setup.get("processes")
        return found if type(found) is int and 1 <= found <= 10**6 else 1

    def points(self, key: str) -> Points:
        """(step, value) of all log lines that have `key`."""
        return [(float(line["step"]), float(line[key])) for line in self.lines if is_number(line.get(key))]

    def keys(self, beginning: str = "", ending: str = "") -> list[str]:
        """Keys of the log with such names and a number behind them, in alphabetical order."""
        return [key for key in self._keys if key.startswith(beginning) and key.endswith(ending)]

    @cached_property
    def _keys(self) -> list[str]:
        found: set[str] = set()
        for line in self.lines:
            found.update(key for key, value in line.items() if key not in found and is_number(value))
        return sorted(found)
