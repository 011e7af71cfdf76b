"""Folders of flat arrays: written piece by piece, whole or not there, opened as memory maps.

Such a folder holds `meta.json` and one raw file per array, in the machine's (little-endian) byte order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import DTypeLike, NDArray

from morphing_trainer.errors import DataError
from morphing_trainer.reading import read_json

META = "meta.json"
LEFTOVER = ".unfinished-"
LEFTOVER_SECONDS = 24 * 3600
MOST_META_BYTES = 1 << 20

_NAME = re.compile(r"[a-z_]{1,40}")
_DTYPE = re.compile(r"[<|=]?[iu][1248]")


def cache_folder() -> Path:
    """Where samples are kept for the next run: beside what `datasets` keeps (`HF_DATASETS_CACHE`)."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "morphing_trainer"


class ArrayWriter:
    """A raw file that arrays of one type are appended to."""

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self.length = 0
        self._digest = hashlib.blake2b(digest_size=16)
        self._file = path.open("wb")

    def append(self, values: NDArray[Any]) -> None:
        """Write `values`, (any,), as `dtype`; they must fit in it."""
        content = np.ascontiguousarray(values, self.dtype)
        self._file.write(content.data)
        self._digest.update(content.data)
        self.length += len(values)

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(self, *failure: object) -> None:
        with self._file:
            if failure[0] is None:
                self._file.flush()
                os.fsync(self._file.fileno())

    @property
    def description(self) -> dict[str, Any]:
        """Type, length and a digest of the content, as `meta.json` holds them."""
        return {"dtype": self.dtype.str, "length": self.length, "digest": self._digest.hexdigest()}


@contextlib.contextmanager
def building(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A new folder beside `target`, which takes its place at the end, or is removed if anything goes wrong.

    Where another process was faster, its folder stays, unless `overwrite`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    folder = Path(tempfile.mkdtemp(prefix=f"{LEFTOVER}{target.name}-", dir=target.parent))
    try:
        folder.chmod(0o777 & ~_umask())  # mkdtemp lets nobody else read it
        yield folder
        _put(folder, target, overwrite)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(target: Path) -> None:
    """Remove what processes that were killed have left of earlier attempts; a younger one may still be at work."""
    for left in target.parent.glob(f"{LEFTOVER}{target.name}-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > LEFTOVER_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def _put(folder: Path, target: Path, overwrite: bool) -> None:
    """Rename `folder` to `target`. What was there is moved aside first and is back if that fails."""
    if not target.exists():
        with contextlib.suppress(FileExistsError):
            folder.rename(target)
        return
    if overwrite:
        aside = folder.with_name(f"{folder.name}-old")
        target.rename(aside)
        try:
            folder.rename(target)
        except BaseException:
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_meta(folder: Path, meta: Mapping[str, Any]) -> None:
    """Write `meta.json`; the last file of a folder."""
    with (folder / META).open("w", encoding="utf-8") as file:
        json.dump(meta, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def read_meta(folder: Path, where: str) -> dict[str, Any]:
    """What `meta.json` of `folder` holds.

    Raises:
        DataError: if it cannot be read or is no mapping.
    """
    try:
        meta = read_json(folder / META, MOST_META_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: {folder / META} cannot be read ({error}). Prepare the data again.") from error
    if not isinstance(meta, dict):
        raise DataError(f"{where}: {folder / META} is damaged. Prepare the data again.")
    return meta


def open_arrays(folder: Path, described: Mapping[str, Any], where: str) -> dict[str, NDArray[Any]]:
    """The arrays that `meta.json` describes, as memory maps for reading.

    Raises:
        DataError: if one is missing, or its file has another size than described.
    """
    if strangers := [name for name in described if not _NAME.fullmatch(name)]:
        raise DataError(f"{where}: {folder / META} names an array {strangers[0]!r:.60}. Prepare the data again.")
    return {name: _open_array(folder / f"{name}.bin", about, where) for name, about in described.items()}


def verify_arrays(folder: Path, where: str) -> None:
    """Read every array of a folder and hold it against its digest; about a second per GB.

    Raises:
        DataError: naming the file that is missing or damaged.
    """
    described = read_meta(folder, where).get("arrays")
    for name, array in open_arrays(folder, described if isinstance(described, dict) else {}, where).items():
        digest = hashlib.blake2b(array.view(np.uint8).data if len(array) else b"", digest_size=16)
        if digest.hexdigest() != (described or {})[name].get("digest"):
            raise DataError(
                f"{where}: {folder / name}.bin is not what was written: the folder is damaged. Copy it again as a "
                "whole, or prepare the data again."
            )


def _open_array(path: Path, about: Any, where: str) -> NDArray[Any]:
    try:
        kind, length = about["dtype"], about["length"]
        if not (isinstance(kind, str) and _DTYPE.fullmatch(kind) and type(length) is int and length >= 0):
            raise ValueError(f"{kind!r:.60} and {length!r:.60}")
        dtype = np.dtype(kind)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: {path.with_name(META)} is damaged. Prepare the data again.") from error
    size = path.stat().st_size if path.is_file() else None
    if size != length * dtype.itemsize:
        found = "is missing" if size is None else f"has {size} bytes"
        raise DataError(
            f"{where}: {path} {found}, but {META} says {length * dtype.itemsize}: the folder is damaged. "
            "Copy it again as a whole, or prepare the data again."
        )
    return np.memmap(path, dtype, "r") if length else np.empty(0, dtype)
