"""Tensors of a safetensors file, read into memory of their own.

safetensors itself maps files. What is mapped changes with the file, and where somebody cuts the file short, touching it
ends the process by a SIGBUS, which no `except` sees. To read takes as long if the file is in memory, and less if not.

The format: 8 bytes with the length of the header (little-endian), the header (JSON: name -> dtype, shape, and the bytes
from-to behind the header), the tensors.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from morphing_trainer.errors import CheckpointError
from morphing_trainer.reading import check_regular, parse_json

MOST_HEADER_BYTES = 100_000_000
"""As the safetensors library has it."""
_MOST = 2**62
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, in host memory.

    Raises:
        CheckpointError: if it cannot be read, is cut short, or is no such file.
    """
    try:
        check_regular(path)
        with path.open("rb", buffering=0) as file:
            return _read(file, path.stat().st_size)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); use another checkpoint.") from error


def _read(file: io.FileIO, size: int) -> dict[str, Tensor]:
    length = int.from_bytes(_bytes(file, 8), "little")
    if length > min(size - 8, MOST_HEADER_BYTES):
        raise ValueError("its header is longer than the file, or too long")
    header = parse_json(_bytes(file, length))
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    entries = {name: _entry(name, entry) for name, entry in header.items() if name != "__metadata__"}
    place, found = 0, {}
    for name, (kind, shape, start, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if start != place or stop - start != math.prod(shape) * kind.itemsize:
            raise ValueError(f"{name!r:.80} does not lie where it should")
        place = stop
        if 8 + length + stop > size:
            raise ValueError("it is cut short")
        found[name] = torch.empty(shape, dtype=kind)
        _fill(file, found[name])
    if 8 + length + place != size:
        raise ValueError("it holds more than its header says")
    return found


def _entry(name: str, entry: Any) -> tuple[torch.dtype, list[int], int, int]:
    """Type, shape, and where its bytes begin and end."""
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(start), int(stop)]}:
            if kind in _TYPES and _counts(shape) and _counts([start]) and _counts([stop]):
                return _TYPES[kind], shape, start, stop
    raise ValueError(f"{name!r:.80} is of no type, shape and place that is known")


def _counts(values: list[Any]) -> bool:
    """Whether these are numbers that torch can count with, also as strides of an empty tensor."""
    known = all(type(value) is int and value >= 0 for value in values)
    return known and bool(math.prod(max(1, value) for value in values) < _MOST)


def _bytes(file: io.FileIO, count: int) -> bytes:
    content = bytearray(count)
    _into(file, memoryview(content))
    return bytes(content)


def _fill(file: io.FileIO, tensor: Tensor) -> None:
    if tensor.numel():
        _into(file, tensor.reshape(-1).view(torch.uint8).numpy().data)


def _into(file: io.FileIO, target: memoryview) -> None:
    """Fill `target` from the file. Raises ValueError if the file ends before."""
    done = 0
    while done < len(target):
        count = file.readinto(target[done:])  # at most 2 GiB at a time
        if not count:
            raise ValueError("it is cut short")
        done += count
