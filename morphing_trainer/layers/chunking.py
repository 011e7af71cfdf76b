"""A Trainer whose training loss is computed for some tokens at a time."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

from morphing_trainer.layers.optimizing import OptimizingTrainer
from morphing_trainer.run.chunked_loss import ChunkedLoss


class ChunkingTrainer(OptimizingTrainer):
    """`loss_chunk_size` of `MorphingTrainer`. Evaluations make all logits, since their metrics need them."""

    _chunked: weakref.ref[Any] | None = None
    """The model that computes its loss in chunks."""

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As inherited; a training loss without its logits, if they are not asked for."""
        size = self.args.loss_chunk_size
        if size is not None and self.model.training and not return_outputs and "shift_labels" not in inputs:
            inputs = {**inputs, **self._installed(size).ask()}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _installed(self, size: int) -> ChunkedLoss:
        """The loss of the model, in chunks; after an operation that is a new one."""
        model = self.bare_model
        if self._chunked is None or self._chunked() is not model:
            self._chunked = weakref.ref(model)
            return ChunkedLoss(model, size)
        found: ChunkedLoss = model.loss_function
        return found
