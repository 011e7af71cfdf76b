"""Writes the statistics and the log lines of a run while it goes on, on the main process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from morphing_trainer.run.folder import HISTORY, STATS
from morphing_trainer.run.history import append_history, begin_history
from morphing_trainer.run.progress import PROGRESS, progress, write_progress
from morphing_trainer.run.session import Session
from morphing_trainer.run.statistics import overall
from morphing_trainer.run.stats_files import statistics_files, write_statistics

_log = logging.getLogger("morphing_trainer")


class Recorder(TrainerCallback):
    """Keeps `stats/` up to date: a line, and where the run stands, for every log; the statistics at evaluations,
    checkpoints and the end.

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
    ) -> None:
        self._folder, self._session, self._begun, self._flos = folder, session, begun, flos
        self._recording = False

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._recording = state.is_world_process_zero and self._session() is not None
        self._try(lambda: begin_history(self._folder / STATS / HISTORY, state.log_history))
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
        self._progress()

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
        """Write where the run stands."""
        if (session := self._session()) is not None:
            seen = overall(session.state.totals.values())
            length = seen.tokens / seen.samples if seen.samples else None
            self._try(lambda: write_progress(self._folder / STATS / PROGRESS, progress(session, length)))

    def _try(self, work: Callable[[], None]) -> None:
        if not self._recording or self._session() is None:
            return
        try:
            work()
        except OSError as error:
            self._recording = False
            _log.warning("the statistics in %s could not be written any more: %s", self._folder / STATS, error)
