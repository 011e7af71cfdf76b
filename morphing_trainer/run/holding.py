"""Whether somebody trains in a folder: who holds its lock, found out without taking it.

To try the lock, for however short a moment, would refuse a run that begins in that moment. So the system is asked: for
a lock that it would set against ours (network file systems, BSD), for its list of locks (Linux), and for who has the
file open (where that list does not know the file by the same number, as in containers).
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from morphing_trainer.run.folder import LOCK

_LOCKS = Path("/proc/locks")
_PROCESSES = Path("/proc")


def holder(folder: str | Path) -> int | None:
    """The process that trains in `folder`: its id, 0 if that is not known (another machine), None if there is none.

    What another container, or a machine that shares the folder without its locks, does there is not seen.
    """
    path = Path(folder) / LOCK
    if not path.is_file():
        return None
    if sys.platform == "win32":
        return _by_reading(path)
    for ask in (_listed, _in_the_way, _opened):
        with suppress(OSError, ValueError):
            if (found := ask(path)) is not None:
                return found
    return None


def _listed(path: Path) -> int | None:
    """As Linux lists it: `1: FLOCK  ADVISORY  WRITE 592 fe:00:4293092 0 EOF`, of waiting ones with an arrow."""
    if not _LOCKS.is_file():
        return None
    found = path.stat()
    wanted = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in _LOCKS.read_text().splitlines():
        fields = line.split()
        if "->" not in fields and len(fields) >= 6 and fields[5] == wanted:
            return max(0, int(fields[4]))
    return None


def _in_the_way(path: Path) -> int | None:
    """A lock that the system would set against one of ours."""
    import fcntl

    linux = sys.platform.startswith("linux")
    form = "hhqqi4x" if linux else "qqihh"  # of `struct flock`, which BSD begins with start and length
    asked = (fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0) if linux else (0, 0, 0, fcntl.F_WRLCK, os.SEEK_SET)
    with path.open("rb") as file:
        answer = struct.unpack(form, fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(form, *asked)))
    kind, process = (answer[0], answer[4]) if linux else (answer[3], answer[2])
    return None if kind == fcntl.F_UNLCK else max(0, process)


def _opened(path: Path) -> int | None:
    """Who has the file open: it is opened to be locked, and closed to be unlocked."""
    wanted = path.stat()
    for link in _open_files():
        with suppress(OSError):
            found = link.stat()
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return int(link.parent.parent.name)
    return None


def _open_files() -> Iterator[Path]:
    for process in _PROCESSES.glob("[0-9]*/fd"):
        with suppress(OSError):  # it has ended, or is not ours
            yield from process.iterdir()


def _by_reading(path: Path) -> int | None:
    """Windows lets nobody read what is locked."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except PermissionError:
        return 0
    return None
