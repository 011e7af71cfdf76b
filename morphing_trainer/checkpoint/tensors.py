"""Tensors of a safetensors file in memory of their own."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from morphing_trainer.errors import CheckpointError
from morphing_trainer.reading import check_regular


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, in host memory.

    Copies: safetensors maps the file, and what a run trains must not change with it, nor keep the disk space of a
    deleted one.

    Raises:
        CheckpointError: if it cannot be read, is cut short, or is no such file.
    """
    try:
        check_regular(path)
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); use another checkpoint.") from error
