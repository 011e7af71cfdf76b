"""Files of `torch.save` in a checkpoint, looked at before they are loaded.

`torch.load(weights_only=True)` runs nothing, but it makes what the file asks for: records of a compressed archive as
large as they unpack to, `bytearray(10**12)`, tensors of 10^12 entries that all are the same number. What `torch.save`
writes of an optimizer, a scheduler or random states holds none of this, and is refused if it does.
"""

from __future__ import annotations

import pickletools
import threading
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.trainer import safe_globals  # type: ignore[attr-defined]

from morphing_trainer.errors import CheckpointError
from morphing_trainer.memory.failures import is_out_of_memory
from morphing_trainer.reading import MOST_BYTES

MOST_DEPTH = 64
"""Of containers in each other."""

_NEVER = ("builtins bytearray", "__builtin__ bytearray")
_INSTEAD = "use another checkpoint"
_ALLOWING = threading.Lock()
"""What `safe_globals` allows is allowed to all threads, and no longer to any when the first of them is done."""


def read_torch_file(path: Path, *, mapped: bool = True) -> Any:
    """What a file of `torch.save` holds.

    Args:
        mapped: tensors are not read; for a look at what there is. If the file is cut short, touching them ends the
            process.

    Raises:
        CheckpointError: if it is no such file, or one that no run has written.
    """
    try:
        _check_archive(path)
        with _ALLOWING, safe_globals():
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        size = path.stat().st_size
        for tensor in _tensors(content, 0):
            stored = tensor.untyped_storage().nbytes()
            if tensor.numel() * tensor.element_size() > stored or stored > size:
                raise ValueError(f"a tensor of shape {list(tensor.shape)} has more entries than are stored")
    except CheckpointError:
        raise
    except Exception as error:  # of whatever the archive, the unpickler or numpy raise for what is malformed
        if is_out_of_memory(error):
            torch.empty(path.stat().st_size, dtype=torch.uint8)  # fails unless it is the file that asks for too much
        what = str(error).split("\n")[0].split(". ")[0][:200] or type(error).__name__
        raise CheckpointError(f"{path}: is not one that a run has saved ({what}); {_INSTEAD}") from error
    return content


def _check_archive(path: Path) -> None:
    """Raises ValueError unless the file is a plain archive whose records are as large as they say.

    `torch.load` itself compares the size of a tensor with that of its record.
    """
    if path.exists() and not path.is_file():  # to open a pipe waits for ever
        raise ValueError("it is not a regular file")
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        names = [record.filename for record in records]
        if len(set(names)) != len(names):
            raise ValueError("two records have one name")
        if any(record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1 for record in records):
            raise ValueError("a record is compressed or encrypted")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise ValueError("its records are larger than the file")
        pickles = [record for record in records if record.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MOST_BYTES:
            raise ValueError("it has no description of its content, or one that is too large")
        with archive.open(pickles[0]) as described:
            for opcode, argument, _ in pickletools.genops(described):
                if opcode.name == "GLOBAL" and (argument in _NEVER or _is_tensor_class(str(argument))):
                    raise ValueError(f"it asks for {argument}")


def _is_tensor_class(name: str) -> bool:
    """Whether this is `torch FloatTensor` or its like, which make tensors of any size without content."""
    module, _, kind = name.partition(" ")
    return module.partition(".")[0] == "torch" and kind.endswith("Tensor") and not kind.startswith("_")


def _tensors(content: Any, depth: int) -> Iterator[Tensor]:
    """Every tensor in nested containers."""
    if depth > MOST_DEPTH:
        raise ValueError("it is nested too deeply")
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _tensors(value, depth + 1)
    elif isinstance(content, list | tuple | set):
        for value in content:
            yield from _tensors(value, depth + 1)
