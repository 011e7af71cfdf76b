"""How much memory a run uses, and how busy the processor is. Reading it never waits for a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import psutil
import torch

from morphing_trainer.memory.system import GIB, Amount, system_memory

REFRESH_SECONDS = 1.0


@dataclass(frozen=True)
class Device:
    """Memory of an accelerator, in bytes.

    Attributes:
        allocated, peak: of tensors, now and at most since `torch.accelerator.reset_peak_memory_stats`.
        reserved: what the allocator holds of the device, in use or not.
        total: what the device has.
    """

    allocated: int
    reserved: int
    peak: int
    total: int


@dataclass(frozen=True)
class Usage:
    """A reading.

    Attributes:
        process: bytes that this process holds in memory (RSS).
        system: of the machine or container.
        cpu_percent: load of all cores since the reading before.
        device: of the accelerator, if there is one.
    """

    process: int
    system: Amount
    cpu_percent: float
    device: Device | None = None

    @property
    def pressure(self) -> float:
        """Percent in use of what is scarcer, system or device memory. Of the device its peak counts: at the end of a
        step, where this is asked for, what the step needed has been freed."""
        device = 100 * self.device.peak / self.device.total if self.device else 0.0
        return max(self.system.percent, device)

    def figures(self) -> dict[str, float]:
        """The reading as it is logged, in GiB and percent."""
        found = {"memory/process_gib": self.process / GIB, "memory/system_percent": self.system.percent}
        if self.device is not None:
            found["memory/device_gib"] = self.device.allocated / GIB
            found["memory/device_reserved_gib"] = self.device.reserved / GIB
            found["memory/device_peak_gib"] = self.device.peak / GIB
        return {**found, "cpu_percent": self.cpu_percent}

    def shown(self) -> list[tuple[str, str]]:
        """The reading as (label, text), short: `mem 1.2/24 GiB` is the device's or, without one, the process's."""
        own = ("ram" if self.device else "mem", _of(self.process, self.system.total))
        device = [("mem", _of(self.device.allocated, self.device.total))] if self.device else []
        return [*device, own, ("cpu", f"{self.cpu_percent:.0f}%")]


def _of(used: int, total: int) -> str:
    return f"{used / GIB:.1f}/{total / GIB:.3g} GiB"


def read_usage(device: torch.device) -> Usage:
    """What is in use now."""
    return Usage(psutil.Process().memory_info().rss, system_memory(), psutil.cpu_percent(), read_device(device))


def read_device(device: torch.device) -> Device | None:
    """What is in use of a CUDA device, by the allocator's own books; None for other devices."""
    if device.type != "cuda":
        return None
    return Device(
        torch.cuda.memory_allocated(device),
        torch.cuda.memory_reserved(device),
        torch.cuda.max_memory_allocated(device),
        torch.cuda.get_device_properties(device).total_memory,
    )


class Monitor:
    """Readings, taken again when the last one is old enough: a display and every step may ask.

    Args:
        device: whose memory is read beside the machine's.
        read: takes a reading.
        now: the clock, in seconds.
    """

    def __init__(
        self,
        device: torch.device,
        read: Callable[[torch.device], Usage] = read_usage,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device, self._read, self._now = device, read, now
        self._at: float | None = None
        self._latest: Usage | None = None
        psutil.cpu_percent()  # the load is that since the call before

    def latest(self, seconds: float = REFRESH_SECONDS) -> Usage:
        """The last reading, or a new one if that is older than `seconds`."""
        moment = self._now()
        if self._latest is None or self._at is None or moment - self._at >= seconds:
            self._at, self._latest = moment, self._read(self._device)
        return self._latest


def over_ranks(names: Sequence[str], readings: Sequence[Sequence[float]]) -> dict[str, float]:
    """The largest of every figure over all ranks; of several ranks also each one's peak, or memory of its process.

    Args:
        readings: (ranks, names) the figures of every rank.
    """
    found = {name: max(column) for name, column in zip(names, zip(*readings, strict=True), strict=True)}
    telling = "memory/device_peak_gib" if "memory/device_peak_gib" in names else "memory/process_gib"
    if len(readings) > 1:
        place = list(names).index(telling)
        found |= {f"{telling}/rank_{rank}": reading[place] for rank, reading in enumerate(readings)}
    return found


class Pressure:
    """Tells once of every rise of memory use above a threshold.

    Args:
        threshold: in percent; None or 0 never tells.
    """

    MARGIN = 2.0
    """Percent below the threshold at which a rise is over: a use that wavers around it is one rise."""

    def __init__(self, threshold: float | None) -> None:
        self.threshold = threshold or None
        self._above = False

    def rises(self, percent: float) -> bool:
        """Whether `percent` is the first reading of a rise above the threshold."""
        if self.threshold is None:
            return False
        risen = percent >= self.threshold and not self._above
        if percent >= self.threshold:
            self._above = True
        elif percent < self.threshold - self.MARGIN:
            self._above = False
        return risen


def described(figures: Mapping[str, float]) -> str:
    """Figures in one line, for a journal or a message."""
    return ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
