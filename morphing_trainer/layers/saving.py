"""A Trainer whose checkpoints are whole or not there: snapshot, write, publish; beside the training if it is asked for.

    all ranks    a `Snapshot` of the step is taken by the one that writes; random states are gathered there
    one rank     its files are written into a staging folder, hashed and synced, and one rename makes it a checkpoint
    all ranks    agree on how that went, then tell the callbacks

Of a sharded model each rank writes its own `Share` into the staging folder; all agree on how that went before the files
are hashed.

With `async_save` what is written is a thread's work, on each rank that has some. To agree then comes at the end of the
first step after all are done, at the next save or at the end of the run, whichever is first; the thread meets no other
rank.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers.training_args import ParallelMode

from morphing_trainer.callback import SegmentHandler
from morphing_trainer.checkpoint import prune, publish, staging_folder, write_manifest
from morphing_trainer.layers.beside import BesideTrainer
from morphing_trainer.layers.sharding import Share
from morphing_trainer.run.snapshot import Snapshot, random_states, write
from morphing_trainer.run.underway import Underway

_log = logging.getLogger("morphing_trainer")


class SavingTrainer(BesideTrainer):
    """The saving half of `MorphingTrainer`."""

    # Trainer's own annotations allow None and other classes, which a morphing run never has.
    callback_handler: SegmentHandler

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
        staging, share = self._staged(underway, copied=beside)
        with self._part_of(underway):
            snapshot = self._snapshot(underway.state, None if share is None else share.small, copied=beside)
            numbers = random_states(distributed=self.args.parallel_mode == ParallelMode.DISTRIBUTED)
        everyone = self.session.consensus.collected(numbers)
        if snapshot is not None and everyone is not None and not self.args.save_only_model:
            snapshot = replace(snapshot, random=everyone)
        if beside:
            rounds = self._rounds_beside(snapshot, final, staging, share)
            self._writing, self.session.writing = self._first_begun(replace(underway, rounds=rounds)), True
            return
        with self._part_of(underway):
            if snapshot is not None:
                self._write(snapshot, final, staging)
        self._pushed(underway)

    # ---- What is saved ---------------------------------------------------------------------------------------------

    def _staged(self, underway: Underway, *, copied: bool) -> tuple[Path | None, Share | None]:
        """The staging folder of a sharded run with this rank's share, which is in it already unless it is a copy."""
        assert self.session is not None
        if not self.is_sharded or self.args.save_only_model:
            return None, None
        folder, share = None, None
        with self._part_of(underway):
            if self.args.should_save:
                folder = staging_folder(self.run_folder, underway.final.name)
        staging = Path(self.session.consensus.shared(str(folder)))
        with self._part_of(underway):
            share = self.own_share(copied=copied)
            if not copied:
                share.write(staging)
        return staging, share

    def _rounds_beside(
        self, snapshot: Snapshot | None, final: Path, staging: Path | None, share: Share | None
    ) -> tuple[Callable[[], None] | None, ...]:
        """What this rank's thread has to do, see `Underway`."""
        if share is None or staging is None:
            return (None if snapshot is None else partial(self._write, snapshot, final),)
        if snapshot is None:
            return partial(share.write, staging), None

        def files() -> None:
            share.write(staging)
            write(snapshot, staging, home=final)

        return files, partial(self._publish, staging, final, snapshot.trainer.best_model_checkpoint)

    # ---- Writing, on one rank; perhaps in a thread -----------------------------------------------------------------

    def _write(self, snapshot: Snapshot, final: Path, staging: Path | None = None) -> None:
        staging = staging or staging_folder(self.run_folder, final.name)
        write(snapshot, staging, home=final)
        self._publish(staging, final, snapshot.trainer.best_model_checkpoint)

    def _publish(self, staging: Path, final: Path, best: str | None) -> None:
        """Make the files that all have written a checkpoint, and delete those that are too many then."""
        write_manifest(staging)
        publish(staging, final)
        if self.args.save_total_limit is not None:
            kept = [final, *([Path(best)] if best else []), *self.protected()]
            prune(self.run_folder, self.args.save_total_limit, kept)
