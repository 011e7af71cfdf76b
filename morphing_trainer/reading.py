"""Reading JSON that others may have written: no more than a limit of bytes, and every fault is a ValueError."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

MOST_BYTES = 256 << 20
"""Larger than any file that a run writes as JSON."""

MOST_NAME, MOST_PATH = 255, 4096
"""Bytes of a file's name, and of a path (Linux; others take no more)."""


def parse_json(text: str | bytes) -> Any:
    """What JSON text says.

    Raises:
        ValueError: if it is not JSON, not UTF-8, nested too deeply, or holds an integer of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """What a JSON file says.

    Args:
        most: bytes; a larger file is not read.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no regular file (a pipe would be waited for), too large, or `parse_json` refuses it.
    """
    return parse_json(read_bytes(path, most))


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no regular file, or larger than `most` bytes.
    """
    check_regular(path)
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most:,} bytes")
    return content


def check_regular(path: Path) -> None:
    """Raises ValueError if this is no regular file: to open a pipe waits for ever. OSError if it is not there."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a regular file")


def path_fault(name: str) -> str | None:
    """Why no file system would take this for a path, None if it may be one."""
    if "\0" in name:
        return "holds a NUL character; remove it"
    longest = max(len(os.fsencode(part)) for part in name.split("/"))
    if longest > MOST_NAME or len(os.fsencode(name)) >= MOST_PATH:
        return f"is too long for a path ({len(name):,} characters); give a shorter one"
    return None
