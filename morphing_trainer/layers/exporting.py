"""A Trainer that saves its model as one that anybody can load, and knows a dead one."""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from morphing_trainer.checkpoint import adapters
from morphing_trainer.checkpoint.storage import refusal
from morphing_trainer.checkpoint.store import checkpoints
from morphing_trainer.errors import ModelError, MorphError, StorageError
from morphing_trainer.layers.sharding import ShardingTrainer
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.lora import without_adapters
from morphing_trainer.run.applying import bare_optimizer
from morphing_trainer.run.finite import all_finite
from morphing_trainer.run.folder import MODEL, REPORT
from morphing_trainer.run.reports import RunReports
from morphing_trainer.sharding import local_part

_log = logging.getLogger("morphing_trainer")


class ExportingTrainer(ShardingTrainer):
    """How `MorphingTrainer` saves a model by itself."""

    _reports: RunReports

    _home: Path | None = None
    """Where the model that is being saved will stand."""

    @property
    def run_folder(self) -> Path:
        return Path(str(self.args.output_dir))

    def dead_parameters(self) -> list[str]:
        """Names of the parameters that hold NaN or infinity, on any rank."""
        weights = self.model.named_parameters()
        found = [name for name, weight in weights if not all_finite(local_part(weight))]
        return found if self.session is None else self.session.consensus.union(found)

    def dead_moments(self) -> list[str]:
        """What the optimizer remembers that holds NaN or infinity, on any rank, by parameter."""
        optimizer = bare_optimizer(self)
        named = {id(weight): name for name, weight in self.bare_model.named_parameters()}
        found = [
            f"{key} of {named.get(id(weight), 'a parameter')}"
            for weight, memory in optimizer.state.items()
            for key, value in memory.items()
            if isinstance(value, Tensor) and value.is_floating_point() and not all_finite(local_part(value))
        ]
        return found if self.session is None else self.session.consensus.union(found)

    def save_whole(self, folder: Path) -> None:
        """Save the model as `folder` in one step: an earlier one there is replaced by a whole one, or stays.

        Adapters are merged, or saved beside their base model if `save_merged` is false.

        Raises:
            ModelError: if the model is dead; it is not saved then.
            StorageError: if the disk refused.
        """
        if dead := self.dead_parameters():
            raise ModelError(
                f"the trained model is dead: {len(dead)} of its parameters hold NaN or infinity ({dead[0]} first). It "
                "is not saved; resume from the last checkpoint with a lower learning rate."
            )
        written = folder.with_name(f".{folder.name}-new")
        try:
            self._save_by_way_of(written, folder)
        except Exception as error:
            if self.is_world_process_zero():
                shutil.rmtree(written, ignore_errors=True)  # half a model would take up what room there is
            reason = None if isinstance(error, MorphError) else refusal(error)
            if reason is None:
                raise
            raise StorageError(
                f"{folder}: the trained model could not be saved ({reason}). Make room, or make the folder writable."
                f"{self._saved_by_then()}"
            ) from error

    def _saved_by_then(self) -> str:
        """What there is to save the model from another time, as a sentence."""
        with suppress(OSError):
            if found := checkpoints(self.run_folder):
                return f" {found[0].name} is there; --resume_from_checkpoint true saves the model again."
        return ""

    def _save_by_way_of(self, written: Path, folder: Path) -> None:
        """Save the model as `written`, then give it the place of `folder`."""
        old = folder.with_name(f".{folder.name}-old")
        if self.is_world_process_zero():
            shutil.rmtree(written, ignore_errors=True)  # of a save that was cut short
        self._home = folder
        try:
            self.save_model(str(written))
        finally:
            self._home = None
        if self.is_world_process_zero():
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                folder.rename(old)
            try:
                written.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
            shutil.rmtree(old, ignore_errors=True)
            _log.info("model saved in %s", folder)
            if folder == self.run_folder / MODEL and (self.run_folder / REPORT).exists():
                self._reports.write_report()  # which tells of the model, too

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As inherited, of the plain model: with adapters merged, or as the base that they are saved beside."""
        model = self.bare_model
        spec = ModelSpec.of(model)
        folder = Path(output_dir or str(self.args.output_dir))
        if self.args.should_save:
            adapters.remove_adapters(folder)
        if spec.adapter is None:
            super()._save(output_dir, state_dict)
            return
        beside = bool(spec.sites) and not self.args.save_merged
        kept, self.model = self.model, without_adapters(model, merge=not beside)
        try:
            super()._save(str(folder))
        finally:
            self.model = kept
        if beside and self.args.should_save:
            adapters.write_adapters(folder, spec, dict(model.named_parameters()), self._home or folder)
