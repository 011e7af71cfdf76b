"""The manifest of a folder: size and SHA-256 of every file, so that damage is found before anything is loaded.

`manifest.json`: `{"format": 1, "files": {"sub/name": {"size": bytes, "sha256": hex}}}`, paths relative to the folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from morphing_trainer.errors import CheckpointError

MANIFEST = "manifest.json"
FORMAT = 1
MAX_MANIFEST_BYTES = 64 << 20

_THREADS = 4
"""Files that are hashed at once: there are two large ones."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_INSTEAD = "use another checkpoint"


def write_manifest(folder: Path) -> Path:
    """Bring every file of `folder` to the disk and write `manifest.json` beside them. Returns its path.

    Raises `CheckpointError` for a link or special file (what it points to is not part of the folder) and for a name
    that `verify` would not accept.
    """
    files: dict[str, dict[str, int | str]] = {}
    folders = [folder]
    for path in _walk(folder):
        if path.is_dir():
            folders.append(path)
        elif path != folder / MANIFEST:
            name = path.relative_to(folder).as_posix()
            if not _is_inside(name):
                raise CheckpointError(f"{folder}: cannot list a file named {name!r}; use plain characters")
            files[name] = _measure(path)
    manifest = folder / MANIFEST
    with manifest.open("w", encoding="utf-8") as file:
        json.dump({"format": FORMAT, "files": dict(sorted(files.items()))}, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    for path in reversed(folders):  # a folder's entries before the entry of the folder itself
        sync_folder(path)
    return manifest


def verify(folder: Path, required: Collection[str] = ()) -> None:
    """Check every file that the manifest lists, and that it lists `required`.

    Raises `CheckpointError` naming the first bad file. Files that are not listed are ignored: people and tools add
    notes and caches, and we read listed names only.
    """
    files = check_listed(folder, required)
    # Hashing lets other threads run. The largest file takes longest, so it comes first.
    largest_first = sorted(files, key=lambda name: -files[name][0])
    with ThreadPoolExecutor(_THREADS, "hashing") as threads:
        found = threads.map(lambda name: _fault(folder, name, *files[name]), largest_first)
        faults = dict(zip(largest_first, found, strict=True))
    for name in files:
        if faults[name]:
            raise CheckpointError(f"{folder / name}: {faults[name]}; {_INSTEAD}")


def check_listed(folder: Path, required: Collection[str]) -> dict[str, tuple[int, str]]:
    """Check that the manifest lists `required`, and nothing else. Returns {file name: (size, SHA-256)}.

    Raises `CheckpointError` naming what is missing.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is not a folder; {_INSTEAD}")
    files = _read_manifest(folder / MANIFEST)
    for name in sorted(required):
        if name not in files:
            raise CheckpointError(f"{folder / MANIFEST}: does not list {name!r}, which is needed; {_INSTEAD}")
    return files


def sync_folder(folder: Path) -> None:
    """Bring the entries of `folder` (names, renames) to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot sync a folder say so like this
            raise
    finally:
        os.close(descriptor)


def _walk(folder: Path) -> Iterator[Path]:
    """Every file and folder below `folder`, parents first. Raises `CheckpointError` for anything else."""
    for path in sorted(folder.iterdir()):
        mode = path.lstat().st_mode
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            raise CheckpointError(f"{path}: is a link or special file; put the file itself there")
        yield path
        if stat.S_ISDIR(mode):
            yield from _walk(path)


def _measure(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
        return {"size": file.tell(), "sha256": digest}


def _fault(folder: Path, name: str, size: int, sha256: str) -> str | None:
    """What is wrong with the file `name`, or None. Never follows a link: it could lead out of the folder."""
    path = folder
    try:
        for part in PurePosixPath(name).parts:
            path = path / part
            if path.is_symlink():
                return "is a link or is behind one"
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return "is not a regular file"
        if found.st_size != size:
            return f"holds {found.st_size} bytes instead of {size}: it is truncated or was changed"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                return "its content was changed (SHA-256 differs)"
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def _read_manifest(path: Path) -> dict[str, tuple[int, str]]:
    """{file name: (size, SHA-256)}. The content is untrusted: every type and every path is checked."""

    def bad(what: str) -> CheckpointError:
        return CheckpointError(f"{path}: {what}; {_INSTEAD}")

    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise bad("is not a regular file")
        with path.open("rb") as file:
            raw = file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        raise bad("is missing") from None
    except OSError as error:
        raise bad(f"cannot be read ({error.strerror})") from error
    if len(raw) > MAX_MANIFEST_BYTES:
        raise bad("is too large to be a manifest")
    try:
        data: Any = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise bad("is not readable JSON") from None
    if not isinstance(data, dict) or type(data.get("format")) is not int or not isinstance(data.get("files"), dict):
        raise bad("is not a manifest")
    if data["format"] != FORMAT:
        raise bad(f"has format {data['format']}, and this version reads format {FORMAT}; update the library")
    files: dict[str, tuple[int, str]] = {}
    for name, entry in data["files"].items():
        if not _is_inside(name):
            raise bad(f"lists {name!r}, which is not a path inside the folder")
        match entry:
            case {"size": int(size), "sha256": str(sha256)} if type(size) is int and _SHA256.fullmatch(sha256):
                files[name] = (size, sha256)
            case _:
                raise bad(f"has no size and SHA-256 for {name!r}")
    return files


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key is given twice")
    return data


def _is_inside(name: str) -> bool:
    """Whether `name` is a plain relative path; drive letters and backslashes are refused on every system."""
    path = PurePosixPath(name)
    plain = name not in ("", ".") and path.as_posix() == name and not path.is_absolute() and ".." not in path.parts
    return plain and name.isprintable() and not set(name) & set("\\:")
