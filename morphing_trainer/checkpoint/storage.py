"""What a disk says when it does not take a file, whoever wrote it: Python, torch or safetensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from morphing_trainer.errors import StorageError

_SIGNS = ("inline_container", "PytorchStreamWriter", "Parent directory", "iostream error")
"""Of the RuntimeErrors that torch raises when it cannot write a file."""


def refusal(error: BaseException) -> str | None:
    """Why a file could not be written, if that is what `error` tells; None if it tells of something else."""
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return f"{reason}: {error.filename}" if error.filename else reason
    if isinstance(error, SafetensorError):
        return str(error)
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS):
        return f"torch could not write a file to its end, as on a full disk ({str(error).splitlines()[0]})"
    return None


@contextmanager
def storage_told(folder: Path) -> Iterator[None]:
    """Make a `StorageError` of what the file system refuses below `folder` or on the way there; other errors pass."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        name = error.filename
        if not isinstance(name, str | os.PathLike) or not (
            Path(name).is_relative_to(folder) or folder.is_relative_to(name)
        ):
            raise
        raise StorageError(
            f"output_dir: {name}: {error.strerror or error}. The run needs a folder that it can read and write, and "
            "room on its disk; see to that, or choose another one by --output_dir."
        ) from error
