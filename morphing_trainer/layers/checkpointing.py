"""A Trainer whose checkpoints are whole or not there, know their architecture, and are loaded strictly."""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from morphing_trainer.callback import SegmentHandler
from morphing_trainer.checkpoint import adapters, latest_valid, prune, publish, staging_folder, write_manifest
from morphing_trainer.checkpoint.store import checkpoints
from morphing_trainer.config import MorphingConfig
from morphing_trainer.engine import optimizer_names, rebuild_optimizer
from morphing_trainer.errors import CheckpointError, ModelError
from morphing_trainer.layers.optimizing import OptimizingTrainer
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.lora import without_adapters
from morphing_trainer.run.applying import bare_optimizer
from morphing_trainer.run.bundle import REQUIRED, Bundle, load_model, read_bundle, write_bundle
from morphing_trainer.run.course import Course
from morphing_trainer.run.folder import AUTO, JOURNAL
from morphing_trainer.run.session import Session
from morphing_trainer.schedule import Schedule

_log = logging.getLogger("morphing_trainer")


class CheckpointingTrainer(OptimizingTrainer):
    """The saving and loading half of `MorphingTrainer`."""

    # Trainer's own annotations allow None and other classes, which a morphing run never has.
    args: MorphingConfig
    model: Any
    optimizer: Any
    lr_scheduler: Any
    callback_handler: SegmentHandler
    eval_dataset: Any
    session: Session | None = None
    schedule: Schedule
    course: Course
    """The stages of the run."""
    _bundle: Bundle | None = None
    _staging: Path | None = None
    _home: Path | None = None
    """Where the folder that is being written will stand."""
    _pushes: list[str]
    _arguments: dict[str, Any]
    """The arguments as they were given: operations change them while the run goes on."""

    @property
    def run_folder(self) -> Path:
        return Path(str(self.args.output_dir))

    def find_bundle(self, resume: str | bool | None) -> Bundle | None:
        """The checkpoint that `resume` asks for, verified: the latest valid one for True, None for a fresh start.

        "auto" is the latest valid one if the run's folder holds a checkpoint, and a fresh start if it holds none.

        Raises:
            CheckpointError: if there is none, or the one named is damaged or cannot be resumed by this run.
        """
        if resume is None or resume is False:
            return None
        if resume is not True and str(resume).lower() not in ("true", "1", "yes", AUTO):
            return read_bundle(Path(resume))
        path = latest_valid(self.run_folder, REQUIRED)
        if path is None and resume == AUTO and not checkpoints(self.run_folder):
            return None
        if path is None:
            damaged = [folder.name for folder in checkpoints(self.run_folder)]
            what = f"all its checkpoints are damaged ({', '.join(damaged)})" if damaged else "it holds no checkpoint"
            raise CheckpointError(
                f"resume_from_checkpoint: nothing to resume in {self.run_folder}: {what}. Start afresh with "
                "--overwrite_output_dir, or name another folder."
            )
        return read_bundle(path)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing: the model was rebuilt before training began, and a lenient second load would only hide faults."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As inherited; with another number of processes than then, there is no state for each, and all draw anew."""
        assert self._bundle is not None
        assert self.session is not None
        if self._bundle.processes == self.args.world_size:
            super()._load_rng_state(checkpoint)
            return
        text = f"seed {self.args.seed}, step {self.session.state.step}, rank {self.args.process_index}"
        set_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))

    def _load_best_model(self) -> None:
        """The best checkpoint may hold another architecture than the last."""
        path = Path(str(self.state.best_model_checkpoint))
        bundle = read_bundle(path)
        spec = ModelSpec.from_dict(bundle.state["spec"])
        optimizer = bare_optimizer(self)
        self.model = self.model_wrapped = load_model(path, spec, self.model, self.args.device)
        # For a next call of `train`: the old one holds the parameters of the last model.
        self.optimizer = rebuild_optimizer(optimizer, self.model, bundle.state["groups"])

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def save_whole(self, folder: Path) -> None:
        """Save the model as `folder` in one step: an earlier one there is replaced by a whole one, or stays.

        Adapters are merged, or saved beside their base model if `save_merged` is false.

        Raises:
            ModelError: if the model is dead; it is not saved then.
        """
        if dead := self.dead_parameters():
            raise ModelError(
                f"the trained model is dead: {len(dead)} of its parameters hold NaN or infinity ({dead[0]} first). It "
                "is not saved; resume from the last checkpoint with a lower learning rate."
            )
        written, old = folder.with_name(f".{folder.name}-new"), folder.with_name(f".{folder.name}-old")
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
            written.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
            _log.info("model saved in %s", folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As inherited, of the plain model: with adapters merged, or as the base that they are saved beside."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        spec = ModelSpec.of(model)
        folder = Path(output_dir or str(self.args.output_dir))
        if self.args.should_save:
            adapters.remove_adapters(folder)
        if spec.adapter is None:
            super()._save(output_dir, state_dict)
            return
        beside = bool(spec.sites) and (self._staging is not None or not self.args.save_merged)
        kept, self.model = self.model, without_adapters(model, merge=not beside)
        try:
            super()._save(str(folder))
        finally:
            self.model = kept
        if beside and self.args.should_save:
            adapters.write_adapters(folder, spec, dict(model.named_parameters()), self._home or folder)

    def dead_parameters(self) -> list[str]:
        """Names of the parameters that hold NaN or infinity."""
        return [name for name, weight in self.model.named_parameters() if not torch.isfinite(weight).all()]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write into a staging folder, then let the checkpoint appear at once. A dead model is not saved."""
        assert self.session is not None, "checkpoints are saved while training"
        # Every rank holds the same weights, so all of them save or none does.
        dead = self.dead_parameters()
        self.session.saves = not dead
        if dead:
            _log.error(
                "step %d: %d of the model's parameters hold NaN or infinity (%s first), so it is not saved and no "
                "earlier checkpoint is removed. Resume from the last one with a lower learning rate.",
                self.state.global_step,
                len(dead),
                dead[0],
            )
            return
        consensus = self.session.consensus
        name = f"checkpoint-{self.state.global_step}"
        final = self.run_folder / name
        failure = None
        try:
            # All ranks write into one folder, which rank 0 makes.
            if self.args.should_save:
                self._staging = staging_folder(self.run_folder, name)
        except OSError as error:
            failure = error
        consensus.settle(failure)
        self._staging = Path(consensus.shared(str(self._staging)))
        staging = self._staging
        self._home = final
        try:
            super()._save_checkpoint(model, trial)
        except OSError as error:
            failure = error
        finally:
            self._staging = self._home = None
        consensus.settle(failure)
        try:
            if self.args.should_save:
                self._complete(staging, final)
        except OSError as error:
            failure = error
        consensus.settle(failure)
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(final)
        for folder in self._pushes:
            super()._push_from_checkpoint(folder)
        self._pushes = []

    def _complete(self, staging: Path, final: Path) -> None:
        assert self.session is not None
        # The inherited method has made a folder of the final name inside; only a neighbour can be renamed atomically.
        written = (staging / final.name).rename(staging.with_name(f"{staging.name}-written"))
        staging.rmdir()
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(final)
            self.state.save_to_json(str(written / "trainer_state.json"))
        write_bundle(
            written,
            self.session.state,
            arguments=self._arguments,
            schedule=self.schedule.to_list(),
            stages=[stage.facts() for stage in self.course.stages],
            optimizer_names=optimizer_names(self.model, bare_optimizer(self)),
            journal=self.run_folder / JOURNAL,
        )
        self._write_more(written)
        write_manifest(written)
        publish(written, final)
        best = self.state.best_model_checkpoint
        if self.args.save_total_limit is not None:
            prune(self.run_folder, self.args.save_total_limit, [final, *([Path(best)] if best else [])])

    def _write_more(self, folder: Path) -> None:
        """Add files to a checkpoint, before its manifest is made; on the main process."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Pushed once it is published, from where it stays."""
        self._pushes.append(str(self.run_folder / Path(checkpoint_folder).name))
