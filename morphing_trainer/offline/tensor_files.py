"""Safetensors files, read and written one tensor at a time. None is mapped, so memory holds what is asked for only.

The format: length of the header (8 bytes, little endian), the header (JSON: name -> dtype, shape, offsets), the data.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from morphing_trainer.errors import CheckpointError
from morphing_trainer.reading import check_regular, parse_json

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Name in a header -> type. Weights of others (whole numbers, 8 bits) are none that an operation could compute with."""

_CODES = {dtype: code for code, dtype in TYPES.items()}
_ALIGNED = 8


class Slot(NamedTuple):
    """A tensor in a file: its type by name, its shape, and its bytes, counted from the file's beginning."""

    code: str
    shape: tuple[int, ...]
    start: int
    size: int


class TensorFile:
    """A file of tensors, looked at and not read.

    Attributes:
        path: of the file.
        slots: name -> where it is.

    Raises:
        CheckpointError: if it is no such file, or cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            check_regular(path)
            with safe_open(path, "pt"):  # which checks that types, shapes and offsets fit each other and the file
                pass
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = parse_json(file.read(length))
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"{path}: cannot be read ({error}); it is damaged: save or download the model again."
            ) from error
        self.slots = {
            name: Slot(entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0], _span(entry))
            for name, entry in header.items()
            if name != "__metadata__"
        }

    def read(self, name: str) -> Tensor:
        """A tensor, in memory of its own.

        Raises:
            CheckpointError: if it is of a type that no operation computes with, or cannot be read.
        """
        slot = self.slots[name]
        if slot.code not in TYPES:
            raise CheckpointError(f"{self.path}: {name} is of type {slot.code}; give it in one of {', '.join(TYPES)}.")
        flat = torch.empty(slot.size, dtype=torch.uint8)
        try:
            with self.path.open("rb") as file:
                file.seek(slot.start)
                found = file.readinto(flat.numpy().data)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error.strerror}).") from error
        if found != slot.size:
            raise CheckpointError(f"{self.path}: was cut short while it was read; give a model that nobody writes to.")
        return flat.view(TYPES[slot.code]).view(slot.shape)


def write_tensors(
    path: Path, shapes: Mapping[str, tuple[torch.dtype, Sequence[int]]], make: Callable[[str], Tensor]
) -> None:
    """Write a file of tensors, each of which is made, written and let go before the next.

    Args:
        shapes: name -> type and shape, in the order of the file but for this: wide types come first, so that each
            tensor begins at a multiple of its type's size.
        make: makes the tensor of a name, in that type and shape.

    Raises:
        OSError: if the disk refuses.
    """
    names = sorted(shapes, key=lambda name: -shapes[name][0].itemsize)  # which keeps the order otherwise
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        dtype, shape = shapes[name]
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = make(name)
            assert (tensor.dtype, tuple(tensor.shape)) == (shapes[name][0], tuple(shapes[name][1])), name
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
            del tensor
        file.flush()
        os.fsync(file.fileno())


def bytes_of(shapes: Mapping[str, tuple[torch.dtype, Sequence[int]]]) -> int:
    """Bytes of such a file's data."""
    return sum(math.prod(shape) * dtype.itemsize for dtype, shape in shapes.values())


def _span(entry: Mapping[str, Sequence[int]]) -> int:
    start, end = entry["data_offsets"]
    return end - start
