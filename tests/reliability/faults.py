"""Failing file operations, counted and injected from outside of the package: for a process that is given up after it.

Every operation below a folder that Python's audit events tell of (open, rename, mkdir, remove, listing, ...), every
`fsync`, and the middle of every file that Python writes. What compiled code writes (`model.safetensors`,
`optimizer.pt`) is failed by the system itself: see `test_sizes.py`.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Literal

EVENTS = (
    *("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.scandir", "os.listdir", "os.truncate", "os.link"),
    *("os.symlink", "os.chmod", "os.utime", "shutil.rmtree", "shutil.copyfile", "shutil.move", "fcntl.flock"),
)

How = Literal["error", "death"]


class Faults:
    """Counts the file operations below `root` from `armed` on; the `at`-th (from 0) fails.

    Args:
        at: None only counts.
        how: `error` raises an `OSError`, once; `death` is SIGKILL.
    """

    def __init__(self, root: Path, at: int | None = None, how: How = "error") -> None:
        self.root, self.at, self.how = str(root), at, how
        self.log: list[str] = []
        self.armed = False
        self.counting = threading.Lock()
        sys.addaudithook(self._heard)  # stays for the life of the process
        self._fsync, self._open = os.fsync, io.open
        os.fsync = self._synced
        io.open = builtins.open = self._opened  # type: ignore[assignment]

    def _point(self, what: str) -> None:
        with self.counting:  # several threads may be at it
            at = len(self.log)
            self.log.append(what.replace(self.root, "."))
        if at != self.at:
            return
        if self.how == "death":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.EIO, "injected", *what.split(" ")[1:])

    def _is_below(self, target: Any) -> bool:
        if isinstance(target, int):
            return False  # a descriptor: its opening was counted
        path = os.fsdecode(target)
        return path.startswith(self.root) or not os.path.isabs(path)  # a bare name goes with a folder's descriptor

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.armed and event in EVENTS and arguments and self._is_below(arguments[0]):
            self._point(f"{event} {os.fsdecode(arguments[0])}")

    def _synced(self, descriptor: int) -> None:
        if self.armed:
            self._point("os.fsync")
        self._fsync(descriptor)

    def _opened(self, file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        made = self._open(file, mode, *args, **options)
        if self.armed and set(mode) & set("wax+") and self._is_below(file):
            self._watch(made, str(file))
        return made

    def _watch(self, file: Any, name: str) -> None:
        """The first write of a file may fail when half of it is there."""
        write, begun = file.write, []

        def written(data: Any) -> Any:
            if self.armed and not begun:
                begun.append(True)
                if len(self.log) == self.at:
                    write(data[: len(data) // 2])
                    file.flush()
                self._point(f"write {name}")
            return write(data)

        file.write = written
