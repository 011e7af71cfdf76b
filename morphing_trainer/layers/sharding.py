"""A Trainer that saves and loads a model which FSDP2 has divided among processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.trainer import SCHEDULER_NAME

from morphing_trainer.checkpoint.torch_files import read_torch_file
from morphing_trainer.engine import dressed, optimizer_names
from morphing_trainer.layers.chunking import ChunkingTrainer
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.run.applying import bare_optimizer
from morphing_trainer.run.snapshot import Copier
from morphing_trainer.sharding import collected, is_sharded, reshard
from morphing_trainer.sharding.files import FOLDER, Rows, load_state, own_pieces, split, write_pieces


@dataclass(frozen=True)
class Share:
    """What one process writes of a sharded optimizer.

    Attributes:
        small: what `optimizer.pt` holds beside the rows, of which every process has all.
        rows: own rows by parameter and key.
        rank: of this process.
        arrived: as a `Snapshot`'s.
    """

    small: Mapping[str, Any]
    rows: Mapping[str, Rows]
    rank: int
    arrived: torch.cuda.Event | None

    def write(self, checkpoint: Path) -> None:
        """Write the rows into a checkpoint's folder, which exists. No process group is used.

        Raises:
            OSError, SafetensorError: if the disk refuses.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        write_pieces(checkpoint / FOLDER, self.rows, self.rank)


class ShardingTrainer(ChunkingTrainer):
    """What `MorphingTrainer` does with sharded models: they are saved as whole ones, their optimizer in shards.

    A model that is not sharded is left to the layers below.
    """

    @property
    def is_sharded(self) -> bool:
        return is_sharded(self.bare_model)

    def evaluation_loop(self, *args: Any, **options: Any) -> Any:
        """As inherited; afterwards every process has its own rows again."""
        try:
            return super().evaluation_loop(*args, **options)
        finally:
            reshard(self.bare_model)

    def whole_weights(self) -> dict[str, Tensor]:
        """All weights by parameter name, as the processes hold them together; all have to ask. Only the main process
        gets those of a sharded model, in host memory."""
        model = self.bare_model
        if not is_sharded(model):
            return dict(model.named_parameters())
        reshard(model)
        return collected(dict(model.named_parameters()), keep=self.is_world_process_zero())

    def whole_model(self) -> PreTrainedModel | None:
        """The model in one piece: a copy in host memory if it is sharded, on the main process only."""
        model = self.bare_model
        if not is_sharded(model):
            return model
        weights = self.whole_weights()
        return dressed(ModelSpec.of(model), weights, like=model) if self.is_world_process_zero() else None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As inherited; a sharded model is put together first.

        The inherited way writes nothing of a model under FSDP, nor of a whole one (the best of a run that has ended).
        """
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        model = self.whole_model()
        if self.args.should_save:
            kept, self.model = self.model, model
            try:
                self._save(output_dir)
            finally:
                self.model = kept
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def own_share(self, *, copied: bool) -> Share:
        """This process's part of a checkpoint, beside what the main process has of it: rows of the optimizer's state.

        Args:
            copied: the rows are to be the share's own, in host memory.
        """
        optimizer, copier = bare_optimizer(self), Copier()
        small, pieces = split(optimizer.state_dict(), optimizer_names(self.bare_model, optimizer))
        rows = own_pieces(pieces)
        if copied:
            rows = {name: Rows(copier.tensor(own.values), own.first) for name, own in rows.items()}
        return Share(small, rows, self.args.process_index, copier.recorded())

    def _load_states(self, folder: Path) -> None:
        """Load optimizer and scheduler, whole or sharded, into what this run has."""
        if not (self.is_sharded or (folder / FOLDER).is_dir()):
            super()._load_states(folder)
            return
        model, optimizer = self.bare_model, bare_optimizer(self)
        load_state(folder, optimizer, model, optimizer_names(model, optimizer))
        self.lr_scheduler.load_state_dict(read_torch_file(folder / SCHEDULER_NAME, mapped=False))
