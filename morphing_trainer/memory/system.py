"""Memory of the machine, or of the container (cgroup) that the process may use of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

GIB = 2**30
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
_UNLIMITED = 2**60
"""Version 1 writes "no limit" as a number near 2**63."""


class Amount(NamedTuple):
    """Bytes in use, of how many there are."""

    used: int
    total: int

    @property
    def percent(self) -> float:
        return 100 * self.used / self.total


def system_memory(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> Amount:
    """Memory in use of what this process may use: of the machine, or of the container whose limit is nearer.

    Args:
        cgroups, own: where the kernel shows the limits, and which ones hold for this process.
    """
    machine = psutil.virtual_memory()
    amounts = [Amount(machine.total - machine.available, machine.total)]
    # A container may be shown a limit beyond what the machine has.
    amounts += [amount for amount in container_limits(cgroups, own) if amount.total < machine.total]
    return min(amounts, key=lambda amount: amount.total - amount.used)


def container_limits(cgroups: Path = CGROUPS, own: Path = OWN_CGROUP) -> list[Amount]:
    """The memory limits of the cgroups that hold this process, innermost first; none where there is no limit.

    What the kernel could drop at once (the inactive part of the file cache) does not count as used.
    """
    found = []
    for folder, limit, usage, cache in _controllers(cgroups, own):
        total, used = _number(folder / limit), _number(folder / usage)
        if total is not None and used is not None and 0 < total < _UNLIMITED:
            found.append(Amount(max(0, used - _entry(folder / "memory.stat", cache)), total))
    return found


def _controllers(cgroups: Path, own: Path) -> Iterator[tuple[Path, str, str, str]]:
    """Folders to look into: (folder, name of the limit, of the usage, of the entry in memory.stat)."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            root, names = cgroups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = cgroups / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Inside a container the path may be one of the host, which is not there; the mount is the container's own.
        folder = root / path.lstrip("/")
        yield from ((each, *names) for each in (folder, *folder.parents) if each.is_relative_to(root) and each.is_dir())


def _number(path: Path) -> int | None:
    """The number in a file; None for "max", or where there is none."""
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _entry(path: Path, name: str) -> int:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
