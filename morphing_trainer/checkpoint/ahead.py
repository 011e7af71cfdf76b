"""The large files of a checkpoint, read into memory in a thread while others hash them; used once they are verified.

Copies, not mappings: what a run trains must not change with a file, nor keep the disk space of one that is deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from morphing_trainer.checkpoint.torch_files import read_torch_file
from morphing_trainer.errors import CheckpointError


class Ahead:
    """Begins to read at once; an error is raised where the result is asked for.

    Args:
        folder: of the checkpoint.
        weights, optimizer: names of its files; "" for none.
    """

    def __init__(self, folder: Path, weights: str, optimizer: str) -> None:
        self.folder = folder
        threads = ThreadPoolExecutor(1, "reading")
        self._weights: Future[dict[str, Tensor]] | None = threads.submit(read_weights, folder / weights)
        self._optimizer: Future[Any] | None = None
        if optimizer:
            self._optimizer = threads.submit(lambda: in_memory(read_torch_file(folder / optimizer)))
        threads.shutdown(wait=False)

    def weights(self) -> dict[str, Tensor] | None:
        """The weights by name, once: they are the caller's then."""
        future, self._weights = self._weights, None
        return None if future is None else future.result()

    def optimizer(self) -> Mapping[str, Any] | None:
        """The optimizer's state dict, once."""
        future, self._optimizer = self._optimizer, None
        return None if future is None else future.result()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in host memory.

    Raises:
        CheckpointError: if it cannot be read.
    """
    if path.exists() and not path.is_file():  # to open a pipe waits for ever, and the whole process with it
        raise CheckpointError(f"{path}: is not a regular file; resume from an earlier one.")
    try:
        return {name: tensor.clone() for name, tensor in load_file(path).items()}  # which maps the file
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); resume from an earlier one.") from error


def in_memory(value: Any) -> Any:
    """Nested containers with every tensor copied."""
    match value:
        case Tensor():
            return value.clone()
        case dict():
            return {key: in_memory(item) for key, item in value.items()}
        case list():
            return [in_memory(item) for item in value]
    return value
