"""Payloads: what a hostile hand would put into files, and how it is seen that they did not go off."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.reliability.mutations import limited

DEEP = 100_000
DIGITS = "9" * 1_000_000


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def pickled(marker: Path, protocol: int = 2) -> bytes:
    """A pickle that makes the folder `marker`."""
    import pickle

    return pickle.dumps({"state": {}, "param_groups": [], "bomb": Bomb(marker)}, protocol=protocol)


def archive(
    pickle: bytes, records: dict[str, bytes] | None = None, *, compressed: bool = False
) -> Callable[[Path], None]:
    """Writes a file as `torch.save` does, around any pickle."""

    def write(path: Path) -> None:
        kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", kind) as file:
            files = {
                "data.pkl": pickle,
                ".format_version": b"1",
                "byteorder": b"little",
                "version": b"3\n",
                **(records or {}),
            }
            for name, content in files.items():
                file.writestr(f"archive/{name}", content)

    return write


def edited(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the pickle inside a file of `torch.save`, and leave its tensors."""
    with zipfile.ZipFile(path) as file:
        content = {record.filename: file.read(record) for record in file.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, data in content.items():
            file.writestr(name, change(data) if name.endswith("/data.pkl") else data)


def safetensors(header: Any, content: bytes = b"") -> bytes:
    """A file of this header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


UNREADABLE: dict[str, bytes] = {
    "nothing": b"",
    "a NUL byte": b"\x00",
    "no text": b"\xff\xfe\x00\x80" * 10,
    "deep lists": b"[" * DEEP,
    "closed deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep mappings": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "a number of a million digits": f'{{"format": {DIGITS}}}'.encode(),
    "a list": b"[1, 2]",
    "a number": b"7",
    "null": b"null",
    "text": b'"text"',
    "not a number": b"NaN",
    "half of it": b'{"format": ',
    "a YAML tag": b"!!python/object/apply:os.mkdir [executed]",
    "a script": b"#!/bin/sh\nmkdir executed\n",
}
"""What is no JSON object that any file of ours holds."""


@contextlib.contextmanager
def nothing_runs(folder: Path, seconds: float = 10, megabytes: float = 300) -> Iterator[Path]:
    """Gives the path that payloads would make, and sees to it that none has, that it took no time and no memory."""
    marker = folder / "executed"
    with limited(seconds, megabytes):
        yield marker
    assert not marker.exists(), "a payload was executed"
    assert not Path("executed").exists(), "a payload was executed"
