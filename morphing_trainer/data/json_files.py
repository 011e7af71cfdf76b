"""JSON files that others have written, looked at before their reader gets them: over some it ends the whole process.

It is pyarrow's reader, which falls over nested mappings and over values that are neither an object nor a list.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import datasets
import fsspec  # type: ignore[import-untyped, unused-ignore]
import numpy as np

from morphing_trainer.data.hub import first_line
from morphing_trainer.errors import DataError

MOST_DEPTH = 5_000
CHUNK = 4 << 20
SUFFIXES = (".json", ".jsonl", ".ndjson")
_BRACKETS = np.frombuffer(b"{[}]", np.uint8)


def json_fault(path: Path) -> str:
    """What in a JSON file would end the process, or keeps it from being read; "" if nothing."""
    try:
        with path.open("rb") as file:
            return _fault(file)
    except OSError as error:
        return f"cannot be read ({first_line(error)})"


def check_json_files(where: str, builder: Any) -> None:
    """Look at the JSON files of a data set in a folder, those in archives and compressed ones included.

    Args:
        builder: of `datasets`, which has found the files.

    Raises:
        DataError: naming a file that would end the process.
    """
    for name in _json_files(builder):
        with fsspec.open(name, "rb") as file:
            fault = _fault(file)
        if fault:
            raise DataError(f"{where}: {name} {fault}. Correct it.")


def _json_files(builder: Any) -> Iterator[str]:
    """The files that a JSON reader will get, by the names that open them (`gzip://a.json::/data/a.json.gz`).

    A reader of JSON gets all that it has found, whatever their names. Others may find lines of JSON beside their own.
    """
    found = builder.config.data_files
    manager = datasets.StreamingDownloadManager()
    for files in found.values() if isinstance(found, dict) else ():
        for name in manager.iter_files(manager.download_and_extract(list(files))):
            if builder.name == "json" or PurePosixPath(name.partition("::")[0]).suffix.lower() in SUFFIXES:
                yield name


def _fault(file: BinaryIO) -> str:
    """What is wrong with the content, which is read once. Brackets within text count: in pairs they do not matter."""
    depth, first = 0, b""
    while chunk := file.read(CHUNK):
        first = first or chunk.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        if first not in (b"", b"{", b"["):
            return "begins with neither an object nor a list"
        signs = np.frombuffer(chunk, np.uint8)
        signs = signs[np.isin(signs, _BRACKETS)]
        depths = depth + np.cumsum(np.where((signs == ord("{")) | (signs == ord("[")), 1, -1), dtype=np.int64)
        if depths.size and depths.max() > MOST_DEPTH:
            return f"is nested deeper than {MOST_DEPTH:,} levels"
        depth = int(depths[-1]) if depths.size else depth
    return ""
