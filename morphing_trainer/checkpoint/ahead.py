"""The large files of a checkpoint, read into memory in a thread while others hash them; used once they are verified.

Copies, not mappings: what a run trains must not change with a file, nor keep the disk space of one that is deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from morphing_trainer.checkpoint.tensors import read_tensors
from morphing_trainer.checkpoint.torch_files import read_torch_file


class Ahead:
    """Begins to read at once; an error is raised where the result is asked for.

    Args:
        folder: of the checkpoint.
        weights, optimizer: names of its files; "" for none.
    """

    def __init__(self, folder: Path, weights: str, optimizer: str) -> None:
        self.folder = folder
        threads = ThreadPoolExecutor(1, "reading")
        # The optimizer first: its file is the larger one, as for those who hash, and it is asked for first.
        self._optimizer: Future[Any] | None = None
        if optimizer:
            self._optimizer = threads.submit(read_torch_file, folder / optimizer, mapped=False)
        self._weights: Future[dict[str, Tensor]] | None = threads.submit(read_tensors, folder / weights)
        threads.shutdown(wait=False)

    def weights(self) -> dict[str, Tensor] | None:
        """The weights by name, once: they are the caller's then."""
        future, self._weights = self._weights, None
        return None if future is None else future.result()

    def optimizer(self) -> Mapping[str, Any] | None:
        """The optimizer's state dict."""
        return None if self._optimizer is None else self._optimizer.result()
