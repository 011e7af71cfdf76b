"""Writes the statistics and the log lines of a run while it goes on, on the main process."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from morphing_trainer.reporting.examples import Example
from morphing_trainer.reporting.records import Record
from morphing_trainer.run.folder import EXAMPLES, HISTORY, JOURNAL, SETUP, STATS, WORK
from morphing_trainer.run.history import append_history, begin_history
from morphing_trainer.run.progress import PROGRESS, progress, write_progress
from morphing_trainer.run.session import Session
from morphing_trainer.run.shown import append_example, begin_examples
from morphing_trainer.run.statistics import overall
from morphing_trainer.run.stats_files import statistics_files, write_statistics
from morphing_trainer.run.working import Working

_log = logging.getLogger("morphing_trainer")

PROGRESS_SECONDS = 1.0
"""At least so long between two log lines that tell where the run stands: to replace a file takes milliseconds on some
file systems, even where nothing waits for the disk."""


class Recorder(TrainerCallback):
    """Keeps `stats/` up to date: what the run was told, as it begins; a line for every log; where the run stands, at
    most once a second; every example; the statistics at evaluations, checkpoints and the end.

    A disk that is full costs the statistics, not the run.

    Args:
        folder: the run's folder.
        session: the run in progress, None outside of one.
        flos: floating-point operations until now, which every log line gets.
        begun: called on every process when the file of log lines is open.
    """

    def __init__(
        self,
        folder: Path,
        session: Callable[[], Session | None],
        begun: Callable[[], None],
        flos: Callable[[], float],
        setup: Callable[[], dict[str, Any]],
    ) -> None:
        self._folder, self._session, self._begun, self._flos, self._setup = folder, session, begun, flos, setup
        self._recording = False
        self._working = Working()
        self._told = -math.inf
        """When it was last told where the run stands, by `time.monotonic`."""

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._recording = state.is_world_process_zero and self._session() is not None
        stats = self._folder / STATS
        self._try(lambda: begin_history(stats / HISTORY, state.log_history))
        self._spare(lambda: begin_examples(stats / EXAMPLES, state.global_step))
        self._spare(lambda: write_statistics(stats, {SETUP: self._setup()}))
        self._spare(lambda: self._working.begin(self._folder / JOURNAL))
        self._progress()
        if self._session() is not None:
            self._begun()

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self._session() is None:
            return
        state.log_history[-1].setdefault("total_flos", self._flos())
        path = self._folder / STATS / HISTORY
        if path.exists():
            self._try(lambda: append_history(path, state.log_history[-1]))
        else:  # somebody has removed it
            self._try(lambda: begin_history(path, state.log_history))
        if time.monotonic() - self._told >= PROGRESS_SECONDS:
            self._progress()

    def on_example(
        self, args: Any, state: TrainerState, control: Any, example: Example | None = None, **kwargs: Any
    ) -> None:
        if example is not None:
            self._spare(lambda: append_example(self._folder / STATS / EXAMPLES, state.global_step, example))

    def on_operation(
        self, args: Any, state: TrainerState, control: Any, record: Record | None = None, **kwargs: Any
    ) -> None:
        self._told = -math.inf  # the line of the model's new size does tell
        session = self._session()
        if record is not None and session is not None and self._recording:
            self._working.add(record, session.state.spec)

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.write(state)

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.write(state)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.write(state)
        self._recording = False

    def write(self, state: TrainerState) -> None:
        """Write `stats/*.json` as of now."""
        session = self._session()
        if session is None or not self._recording:
            return
        files = statistics_files(
            session.state.totals,
            state.log_history,
            stages=session.state.stages,
            seconds=session.seconds(),
            profile=session.stopwatch.profile(),
        )
        self._try(lambda: write_statistics(self._folder / STATS, files))
        self._progress()

    def _progress(self) -> None:
        """Write where the run stands, and what its work has cost, if that is news."""
        if (session := self._session()) is not None:
            length = self._length(session)
            if length is not None:  # else the next line has news: how long samples are
                self._told = time.monotonic()
            self._try(lambda: write_progress(self._folder / STATS / PROGRESS, progress(session, length)))
            self._spare(lambda: self._write_work(length))

    def _write_work(self, length: float | None) -> None:
        if (work := self._working.content(length)) is not None:
            write_statistics(self._folder / STATS, {WORK: work})

    @staticmethod
    def _length(session: Session) -> float | None:
        """Tokens of a sample, on average; None before the first one."""
        seen = overall(session.state.totals.values())
        return seen.tokens / seen.samples if seen.samples else None

    def _spare(self, work: Callable[[], None]) -> None:
        """`_try`, for what a run can do without: whatever goes wrong with it, the run has nothing to do with it."""

        def careful() -> None:
            try:
                work()
            except OSError:
                raise
            except Exception as error:
                _log.warning("the report in %s will lack something: %s", self._folder, error)

        self._try(careful)

    def _try(self, work: Callable[[], None]) -> None:
        if not self._recording or self._session() is None:
            return
        try:
            work()
        except OSError as error:
            self._recording = False
            _log.warning("the statistics in %s could not be written any more: %s", self._folder / STATS, error)
