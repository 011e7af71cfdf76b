"""A Trainer whose checkpoints are verified as a whole, rebuild their architecture, and are loaded strictly."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import set_seed
from transformers.trainer_callback import ExportableState

from morphing_trainer.checkpoint import latest_valid
from morphing_trainer.checkpoint.ahead import Ahead
from morphing_trainer.checkpoint.store import checkpoints
from morphing_trainer.checkpoint.torch_files import read_torch_file
from morphing_trainer.checkpoint.trainer_files import OPTIMIZER, SCALER, SCHEDULER, TRAINER_STATE, check_callbacks, told
from morphing_trainer.engine import rebuild_optimizer
from morphing_trainer.errors import CheckpointError
from morphing_trainer.layers.saving import SavingTrainer
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.run.applying import bare_optimizer
from morphing_trainer.run.before import check_open_guard
from morphing_trainer.run.bundle import REQUIRED, WEIGHTS, Bundle, load_model, read_bundle
from morphing_trainer.run.consensus import Consensus
from morphing_trainer.run.folder import AUTO
from morphing_trainer.sharding.files import FOLDER as SHARES


class CheckpointingTrainer(SavingTrainer):
    """The loading half of `MorphingTrainer`."""

    eval_dataset: Any
    _ahead: Ahead | None = None
    """What is being read of the checkpoint that is to be resumed; dropped with it if that is not valid."""

    def find_bundle(self, resume: str | bool | None, consensus: Consensus) -> Bundle | None:
        """The checkpoint that `resume` asks for, verified: the latest valid one for True, None for a fresh start.

        "auto" is the latest valid one if the run's folder holds a checkpoint, and a fresh start if it holds none.
        Rank 0 looks; the others need not hash the same files.

        Raises:
            CheckpointError: if there is none, or the one named is damaged or cannot be resumed by this run.
            RankError: on the other ranks, then.
        """
        if resume is None or resume is False:
            return None
        newest = resume is True or resume.lower() in ("true", "1", "yes", AUTO)
        named = None if newest else Path(str(resume))
        if named is not None:
            self._read_ahead(named)
        elif found := checkpoints(self.run_folder):
            self._read_ahead(found[0])
        bundle, failure = None, None
        if self.args.process_index == 0:
            try:
                bundle = self._newest(begins=resume == AUTO) if named is None else read_bundle(named, ahead=self._ahead)
            except CheckpointError as error:
                failure = error
        consensus.settle(failure)
        path = consensus.shared("" if bundle is None else str(bundle.path))
        if self._ahead is not None and str(self._ahead.folder) != path:
            self._ahead = None
        return bundle if bundle is not None or not path else read_bundle(Path(path), verified=True, ahead=self._ahead)

    def _newest(self, begins: bool) -> Bundle | None:
        """The newest checkpoint of the run that is valid. None if it `begins` where there is none at all."""
        read: dict[Path, Bundle] = {}

        def look(folder: Path) -> None:
            read[folder] = read_bundle(folder, verified=True, ahead=self._ahead)
            check_open_guard(read[folder])

        if path := latest_valid(self.run_folder, REQUIRED, look):
            return read[path]
        saved = [folder.name for folder in checkpoints(self.run_folder)]
        if begins and not saved:
            return None
        what = f"all its checkpoints are damaged ({', '.join(saved)})" if saved else "it holds no checkpoint"
        raise CheckpointError(
            f"resume_from_checkpoint: nothing to resume in {self.run_folder}: {what}. Start afresh with "
            "--overwrite_output_dir, or name another folder."
        )

    def _read_ahead(self, folder: Path) -> None:
        """Begin to read the large files of a checkpoint that is about to be verified.

        Not where each process would hold another copy of the optimizer, or only a part is for it.
        """
        alone = self.args.world_size == 1 or self.args.device.type == "cpu"
        shared = os.path.exists(folder / SHARES)  # False, too, of what may not be read: `verify` will say so
        whole = alone and not self.is_fsdp_enabled and not shared and not self.args.ignore_optimizer
        self._ahead = Ahead(folder, WEIGHTS, OPTIMIZER if whole else "")

    def _weights_of(self, folder: Path) -> dict[str, Tensor] | None:
        """The weights of a checkpoint, if they have been read ahead."""
        ahead = self._ahead
        return ahead.weights() if ahead is not None and ahead.folder == folder else None

    def _load_states(self, folder: Path) -> None:
        ahead, self._ahead = self._ahead, None
        state = ahead.optimizer() if ahead is not None and ahead.folder == folder else None
        if state is None:
            super()._load_states(folder)
            return
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(read_torch_file(folder / SCHEDULER, mapped=False))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing: the model was rebuilt before training began, and a lenient second load would only hide faults."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As inherited; with another number of processes than then, there is no state for each, and all draw anew."""
        assert self._bundle is not None
        assert self.session is not None
        if self._bundle.processes == self.args.world_size:
            with told(self._bundle.path / "rng_state*.pth"):
                super()._load_rng_state(checkpoint)
            return
        text = f"seed {self.args.seed}, step {self.session.state.step}, rank {self.args.process_index}"
        set_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))

    def _load_scaler(self, checkpoint: str | None) -> None:
        with told(Path(checkpoint or "") / SCALER):
            super()._load_scaler(checkpoint)

    def _load_callback_state(self) -> None:
        """As inherited, of what these callbacks would save themselves: what a file names becomes their attributes."""
        if self.args.restore_callback_states_from_checkpoint:
            assert self._bundle is not None
            able = [
                each for each in (*self.callback_handler.callbacks, self.control) if isinstance(each, ExportableState)
            ]
            path = self._bundle.path / TRAINER_STATE
            check_callbacks(path, self.state.stateful_callbacks or {}, able)  # type: ignore[arg-type]
            with told(path):
                super()._load_callback_state()

    def _load_best_model(self) -> None:
        """The best checkpoint may hold another architecture than the last."""
        path = Path(str(self.state.best_model_checkpoint))
        bundle = read_bundle(path)
        spec = ModelSpec.from_dict(bundle.state["spec"])
        optimizer = bare_optimizer(self)
        self.model = self.model_wrapped = load_model(path, spec, self.model, self.args.device)
        # For a next call of `train`: the old one holds the parameters of the last model.
        self.optimizer = rebuild_optimizer(optimizer, self.model, bundle.state["groups"])
