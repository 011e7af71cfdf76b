"""A Trainer that writes a checkpoint while it trains on: rounds of work in a thread, with an agreement after each.

A round ends with the first step after all ranks have done their part of it; the next save and the end of the run wait
for all rounds.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from morphing_trainer.checkpoint import sweep
from morphing_trainer.layers.snapshots import SnapshotTrainer
from morphing_trainer.memory.system import system_memory
from morphing_trainer.run.background import Background
from morphing_trainer.run.farewell import raised_together
from morphing_trainer.run.underway import Underway, unsaved

_log = logging.getLogger("morphing_trainer")


class BesideTrainer(SnapshotTrainer):
    """How `MorphingTrainer` goes on while a checkpoint is being written."""

    _writing: Underway | None = None
    """The checkpoint that is being written beside the training, on every rank."""
    _background: Background
    _emergency = False
    """The checkpoint is saved because memory is short: nothing is copied for it."""

    def _writes_beside(self) -> bool:
        """Whether this checkpoint is copied and written while training goes on; the same on every rank."""
        assert self.session is not None
        if not self.args.async_save or self.session.stopping or self._emergency:
            return False
        # Ranks of one machine share its memory, and are known by the first of them.
        consensus, machine = self.session.consensus, self.args.process_index - self.args.local_process_index
        everyone = consensus.gathered([machine, self._copied_bytes()])
        needed = sum(copied for where, copied in everyone if where == machine)
        memory = system_memory()
        full = needed >= memory.total - memory.used
        if full and self.args.local_process_index == 0:
            _log.warning(
                "step %d: async_save: there is no room for a copy of the run's state (%.1f GiB) in host memory; "
                "this checkpoint is written while training waits.",
                self.state.global_step,
                needed / 2**30,
            )
        return not consensus.largest([full])[0]

    def finish_write(self) -> None:
        """Wait until the checkpoint that is being written is there, and tell the callbacks; all ranks together.

        Raises:
            StorageError: if the disk refused.
        """
        while self._writing is not None:
            self._end_round()

    def _end_round(self) -> None:
        """Wait until all ranks have done their part of what is being written; begin what comes then, if anything does.

        Raises:
            StorageError: if the disk refused.
        """
        assert self.session is not None
        underway, self._writing, self.session.writing = self._writing, None, False
        if underway is None:
            return
        self._writing = self._next(underway)
        if self._writing is not None:
            self.session.writing = True
            return
        self._pushed(underway)
        kept, due = self.state, self.control.should_save  # another save may be due by now
        self.state = underway.state
        try:
            self.control = self.callback_handler.on_save(self.args, underway.state, self.control)
        finally:
            self.state = kept
        self.control.should_save = self.control.should_save or due

    def _next(self, underway: Underway) -> Underway | None:
        """The next round, when all ranks are done with the one that goes on; None after the last."""
        failure = self._background.wait()
        with self._part_of(underway):
            if failure is not None:
                raise failure
        return self._first_begun(underway) if underway.rounds else None

    def _first_begun(self, underway: Underway) -> Underway:
        """The first of its rounds goes on in this rank's thread; what is left then."""
        work, *later = underway.rounds
        if work is not None:
            self._background.start(work)
        return replace(underway, rounds=tuple(later))

    def _part_is_done(self) -> bool:
        """Whether a checkpoint is being written, and this rank has nothing more to do for it in this round."""
        return self._writing is not None and not self._background.busy

    def _drop_write(self) -> None:
        """The run is over. If it has failed, a checkpoint may still be on its way: wait for it, whatever becomes of it.

        Ranks that end one by one cannot agree any more, so what they have not all written is not published then. Who
        has pressed Ctrl+C twice does not wait, as they would not for one that is written the other way.
        """
        underway, self._writing = self._writing, None
        error = sys.exception()
        if underway is None or isinstance(error, KeyboardInterrupt):
            return
        assert self.session is not None
        consensus = self.session.consensus
        together = consensus.world_size == 1 or raised_together(error, consensus)
        try:
            while together and underway.rounds:
                underway = self._next(underway) or underway
        except Exception as settled:  # of any kind: the run has failed already, and raises that
            _log.error("%s", settled)
            return
        failure = self._background.wait()
        if failure is not None:
            _log.error("%s", unsaved(failure, underway))
        elif underway.rounds:
            _log.error("%s is not there: the run ended before all ranks had written their part.", underway.final.name)

    def _maybe_log_save_evaluate(self, *args: Any, **options: Any) -> None:
        if self.session is not None and self.session.written:
            self.session.written = False  # said of a round that ends here
            self._end_round()
        super()._maybe_log_save_evaluate(*args, **options)

    def _finalize_training(self, trial: Any, num_train_samples: Any, start_time: Any) -> Any:
        """As inherited, when all checkpoints are there: the best of them may be loaded now."""
        self.finish_write()
        return super()._finalize_training(trial, num_train_samples, start_time)

    @contextmanager
    def _part_of(self, underway: Underway) -> Iterator[None]:
        """A part of a save, on every rank: all go on, or all raise.

        Raises:
            StorageError: if the disk refused.
        """
        assert self.session is not None
        failure: BaseException | None = None
        try:
            yield
        except Exception as error:  # of any kind: the other ranks must not wait for this one in vain
            failure = unsaved(error, underway)
        try:
            self.session.consensus.settle(failure)
        except BaseException:
            if self.state.best_model_checkpoint == str(underway.final):
                self.state.best_model_checkpoint = underway.best_before
            if self.args.should_save:
                with suppress(OSError):
                    sweep(self.run_folder)  # half a checkpoint would take up what room there is
            raise

    def _pushed(self, underway: Underway) -> None:
        if not self.args.push_to_hub:
            return
        kept, self.state = self.state, underway.state
        try:
            self._push_from_checkpoint(str(underway.final))
        finally:
            self.state = kept
