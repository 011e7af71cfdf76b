"""A Trainer whose checkpoints are whole or not there: snapshot, write, publish; beside the training if it is asked for.

    all ranks    a `Snapshot` of the step is taken by the one that writes; random states are gathered there
    one rank     its files are written into a staging folder, hashed and synced, and one rename makes it a checkpoint
    all ranks    agree on how that went, then tell the callbacks

With `async_save` the second line is a thread's work. The third then comes at the end of the first step after it, at the
next save or at the end of the run, whichever is first; the thread itself meets no other rank.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainerState
from transformers.training_args import ParallelMode

from morphing_trainer.callback import SegmentHandler
from morphing_trainer.checkpoint import prune, publish, staging_folder, sweep, write_manifest
from morphing_trainer.checkpoint.storage import refusal
from morphing_trainer.checkpoint.store import checkpoints
from morphing_trainer.errors import MorphError, StorageError
from morphing_trainer.layers.snapshots import SnapshotTrainer
from morphing_trainer.memory.system import system_memory
from morphing_trainer.run.applying import bare_optimizer
from morphing_trainer.run.background import Background
from morphing_trainer.run.snapshot import Snapshot, random_states, write

_log = logging.getLogger("morphing_trainer")


@dataclass(frozen=True)
class Underway:
    """A checkpoint that has been decided on, and may not be there yet.

    Attributes:
        final: where it will stand.
        state: what callbacks are told once it is there: the run as it was then.
        best_before: `best_model_checkpoint` as it was before.
    """

    final: Path
    state: TrainerState
    best_before: str | None


class SavingTrainer(SnapshotTrainer):
    """The saving half of `MorphingTrainer`."""

    # Trainer's own annotations allow None and other classes, which a morphing run never has.
    callback_handler: SegmentHandler
    _writing: Underway | None = None
    """The checkpoint that is being written beside the training, on every rank."""
    _background: Background
    _emergency = False
    """The checkpoint is saved because memory is short: nothing is copied for it."""

    def protected(self) -> list[Path]:
        """Checkpoints that must not be deleted, beside the newest and the best."""
        return []

    # ---- A checkpoint ----------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save this step, all of it or nothing. A dead model is not saved, nor one whose optimizer would kill it.

        Raises:
            StorageError: if the disk refused; also if it refused the checkpoint before, which was written meanwhile.
        """
        assert self.session is not None, "checkpoints are saved while training"
        self.finish_write()
        # Every rank holds the same weights, so all of them save or none does.
        weights = self.dead_parameters()
        dead = weights or self.dead_moments()
        self.session.saves = not dead
        if dead:
            _log.error(
                "step %d: %d of the %s hold NaN or infinity (%s first), so it is not saved and no earlier checkpoint "
                "is removed. Resume from the last one with a lower learning rate.",
                self.state.global_step,
                len(dead),
                "model's parameters" if weights else "optimizer's moments",
                dead[0],
            )
            return
        self.store_flos()
        final = self.run_folder / f"checkpoint-{self.state.global_step}"
        underway = Underway(final, self._state_now(), self.state.best_model_checkpoint)
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = underway.state.best_model_checkpoint = str(final)
        beside = self._writes_beside()
        staging, shared = self._shares(underway) if self.is_sharded and not self.args.save_only_model else (None, None)
        with self._part_of(underway):
            snapshot = self._snapshot(underway.state, shared, copied=beside)
            numbers = random_states(distributed=self.args.parallel_mode == ParallelMode.DISTRIBUTED)
        everyone = self.session.consensus.collected(numbers)
        if snapshot is not None and everyone is not None and not self.args.save_only_model:
            snapshot = replace(snapshot, random=everyone)
        if beside:
            self._writing, self.session.writing = underway, True
            if snapshot is not None:
                self._background.start(partial(self._write, snapshot, final))
            return
        with self._part_of(underway):
            if snapshot is not None:
                self._write(snapshot, final, staging)
        self._pushed(underway)

    def finish_write(self) -> None:
        """Wait until the checkpoint that is being written is there, and tell the callbacks; all ranks together.

        Raises:
            StorageError: if the disk refused.
        """
        underway, self._writing = self._writing, None
        if underway is None:
            return
        assert self.session is not None
        self.session.writing = False
        failure = self._background.wait()
        with self._part_of(underway):
            if failure is not None:
                raise failure
        self._pushed(underway)
        kept, due = self.state, self.control.should_save  # another save may be due by now
        self.state = underway.state
        try:
            self.control = self.callback_handler.on_save(self.args, underway.state, self.control)
        finally:
            self.state = kept
        self.control.should_save = self.control.should_save or due

    def _drop_write(self) -> None:
        """The run is over. If it has failed, a checkpoint may still be on its way: wait for it, whatever becomes of it.

        Who has pressed Ctrl+C twice does not wait, as they would not for one that is written the other way.
        """
        underway, self._writing = self._writing, None
        if underway is None or isinstance(sys.exception(), KeyboardInterrupt):
            return
        failure = self._background.wait()
        if failure is not None:
            _log.error("%s", self._unsaved(failure, underway))

    def _maybe_log_save_evaluate(self, *args: Any, **options: Any) -> None:
        if self.session is not None and self.session.written:
            self.finish_write()
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
            failure = self._unsaved(error, underway)
        try:
            self.session.consensus.settle(failure)
        except BaseException:
            if self.state.best_model_checkpoint == str(underway.final):
                self.state.best_model_checkpoint = underway.best_before
            if self.args.should_save:
                with suppress(OSError):
                    sweep(self.run_folder)  # half a checkpoint would take up what room there is
            raise

    def _unsaved(self, error: BaseException, underway: Underway) -> BaseException:
        """What a save that failed raises: what the disk said, and what there is to go on from."""
        reason = None if isinstance(error, MorphError) else refusal(error)
        if reason is None:
            return error
        advice = "No checkpoint has been saved before."
        with suppress(OSError):
            if found := checkpoints(self.run_folder):
                advice = f"{found[0].name} is there; go on from it by --resume_from_checkpoint true."
        told = StorageError(
            f"step {underway.state.global_step}: the checkpoint could not be saved in {self.run_folder} ({reason}), so "
            f"the run ends. Make room, or make the folder writable. {advice}"
        )
        told.__cause__ = error
        return told

    def _pushed(self, underway: Underway) -> None:
        if not self.args.push_to_hub:
            return
        kept, self.state = self.state, underway.state
        try:
            self._push_from_checkpoint(str(underway.final))
        finally:
            self.state = kept

    # ---- What is saved ---------------------------------------------------------------------------------------------

    def _writes_beside(self) -> bool:
        """Whether this checkpoint is copied and written while training goes on; the same on every rank."""
        assert self.session is not None
        if not self.args.async_save or self.session.stopping or self._emergency or self.is_sharded:
            return False
        fits = True
        if self.args.should_save:
            tensors = [*self.model.parameters(), *_tensors(bare_optimizer(self).state)]
            needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            memory = system_memory()
            if not (fits := needed < memory.total - memory.used):
                _log.warning(
                    "step %d: async_save: there is no room for a copy of the run's state (%.1f GiB) in host memory; "
                    "this checkpoint is written while training waits.",
                    self.state.global_step,
                    needed / 2**30,
                )
        return self.session.consensus.shared(str(fits)) == str(True)

    def _shares(self, underway: Underway) -> tuple[Path, dict[str, Any]]:
        """The staging folder with what every rank writes of a sharded optimizer, and what is left of it to write."""
        assert self.session is not None
        staging, left = None, None
        with self._part_of(underway):
            if self.args.should_save:
                staging = staging_folder(self.run_folder, underway.final.name)
        staging = Path(self.session.consensus.shared(str(staging)))
        with self._part_of(underway):
            left = self.write_shares(staging)
        assert left is not None
        return staging, left

    # ---- Writing, on one rank; perhaps in a thread -----------------------------------------------------------------

    def _write(self, snapshot: Snapshot, final: Path, staging: Path | None = None) -> None:
        staging = staging or staging_folder(self.run_folder, final.name)
        write(snapshot, staging, home=final)
        write_manifest(staging)
        publish(staging, final)
        if self.args.save_total_limit is not None:
            best = snapshot.trainer.best_model_checkpoint
            kept = [final, *([Path(best)] if best else []), *self.protected()]
            prune(self.run_folder, self.args.save_total_limit, kept)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
