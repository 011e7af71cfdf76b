"""What a run leaves behind beside its checkpoints: journal, run log, picture, and the list of its operations."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from morphing_trainer.lineage import ModelSpec
from morphing_trainer.reporting.journal import Change
from morphing_trainer.reporting.log import close_run_log, open_run_log
from morphing_trainer.reporting.records import Record
from morphing_trainer.run import journal
from morphing_trainer.run.back import Return
from morphing_trainer.run.bundle import Bundle
from morphing_trainer.run.changes import evaluated, operations_of
from morphing_trainer.run.folder import JOURNAL, PLOT, REPORT
from morphing_trainer.run.reporting import write_report
from morphing_trainer.run.resume import Override
from morphing_trainer.run.state import RunState
from morphing_trainer.schedule import Entry, Schedule

_log = logging.getLogger("morphing_trainer")


class RunReports:
    """Writes on the main process only.

    Args:
        folder: the run's folder.
        main: whether this is the main process.
    """

    def __init__(self, folder: Path, main: bool) -> None:
        self.records: list[Record] = []
        self.later: dict[int, float] = {}
        """By index, the losses of operations that were evaluated after more training."""
        self.undone: list[journal.Event] = []
        """What tells of the operations that were rolled back."""
        self._folder = folder
        self._main = main
        self._journal = journal.Journal(folder / JOURNAL if main else None)

    def _open(self) -> None:
        """The journal is there: a run's folder is known by it, so it comes before all else."""
        open_run_log(self._folder, main_process=self._main)
        self._journal.hold()

    def started(self, state: RunState, schedule: Schedule, seed: int) -> None:
        self.undone, self.later = [], {}
        facts = {"spec": state.spec.to_dict(), "settings": state.settings.to_dict(), "seed": seed}
        self._journal.write("start", 0, schedule=schedule.to_list(), **facts)
        self._open()

    def resumed(self, state: RunState, bundle: Bundle, overrides: Sequence[Override]) -> None:
        """The journal goes on: in its folder, or from the checkpoint's copy where that was taken elsewhere."""
        self._take_up(bundle)
        path = self._journal.path
        fault = None if path is None else journal.go_on_from(bundle.path / JOURNAL, path)
        known = {"checkpoint": bundle.path.name, "events": len(bundle.events)}
        self._journal.write("resume", state.step, done=state.position.done, **known)
        for override in overrides:
            self._journal.write("override", state.step, name=override.name, before=override.before, now=override.now)
        self._open()
        if fault is not None:
            _log.warning("%s", fault)

    def went_back(self, state: RunState, bundle: Bundle, target: Return) -> None:
        """The run goes on from one of its own checkpoints; `state` is that one's, and marked."""
        self._take_up(bundle)
        done = min(int(bundle.state["position"]["done"]), target.facts.get("index", math.inf))
        known = {"checkpoint": bundle.path.name, "events": len(bundle.events)}
        self._journal.write(target.event, state.step, done=done, **known, **target.facts)
        if target.event == "rolled_back":
            self.undone.append({"step": state.step, **target.facts})

    def _take_up(self, bundle: Bundle) -> None:
        """What was done before the checkpoint, and only that."""
        events = journal.effective(bundle.events)
        self.records, self.later = operations_of(events)
        self.undone = [event for event in events if event["event"] == "rolled_back"]

    def restore(self) -> None:
        """Bring the journal back if somebody has removed it."""
        self._journal.restore()

    def operation(self, record: Record, entry: Entry, spec: ModelSpec) -> None:
        self.records.append(record)
        if self._main and record.warning:
            _log.warning("step %d: %s: %s", record.step, record.operation, record.warning)
        facts = {"entry": entry.to_dict(), "record": record.to_dict(), "spec": spec.to_dict()}
        self._journal.write("operation", record.step, index=record.index, **facts)

    def evaluated(self, step: int, loss: float) -> None:
        """An evaluation: the first one after an operation tells what it did."""
        if not self.records or self.records[-1].after.get("loss") is not None or self.records[-1].index in self.later:
            return
        event: journal.Event = {"step": step, "index": self.records[-1].index, "loss": loss}
        changes = [evaluated(Change(record, later=self.later.get(record.index)), event) for record in self.records]
        self.records = [change.record for change in changes]
        self.later = {change.record.index: change.later for change in changes if change.later is not None}
        self._journal.write("evaluation", **event)

    def stage(self, state: RunState, before: str) -> None:
        """The run has entered its next stage."""
        totals = {name: totals.to_dict() for name, totals in state.totals.items() if name == before}
        self._journal.write("stage", state.step, name=state.stage_name, settings=state.settings.to_dict(), **totals)
        if self._main:
            _log.info("step %d: stage %s begins, to step %d", state.step, state.stage_name, state.stage_end)

    def event(self, name: str, step: int, **facts: Any) -> None:
        self._journal.write(name, step, **facts)

    def close(self, log_history: Sequence[Mapping[str, Any]]) -> None:
        try:
            if self._main:
                from morphing_trainer.reporting.plots import plot_losses  # with matplotlib, which no run needs to begin

                plot_losses(log_history, self.records, self._folder / PLOT)
        except Exception as error:  # of any kind, want of memory included: a result must not be lost over a picture
            _log.warning("the picture %s could not be written: %s", self._folder / PLOT, error)
        finally:
            if self.write_report():
                _log.info("report in %s", self._folder / REPORT)
            self.let_go()

    def write_report(self) -> bool:
        """The page about the run, which is over; whether it has been written. Never raises: the run counts."""
        try:
            if self._main:
                write_report(self._folder, over=True)
            return self._main
        except Exception as error:  # of any kind: whatever a page stumbles over, the run has nothing to do with it
            _log.warning("the report %s could not be written: %s", self._folder / REPORT, error)
            return False

    def let_go(self) -> None:
        """Close the files."""
        self._journal.close()
        close_run_log()
