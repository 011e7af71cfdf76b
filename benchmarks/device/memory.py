"""Memory and time of a device. On a CPU the same calls do nothing, or tell that nothing is known."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def settle() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def clean() -> None:
    """Free what nothing uses any more: models, compiled code, and memory that PyTorch keeps for later."""
    if "torch._dynamo" in sys.modules:  # to import it takes seconds
        torch._dynamo.reset()
    gc.collect()
    settle()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds from an idle device to an idle device, and the result."""
    settle()
    start = time.perf_counter()
    result = work()
    settle()
    return time.perf_counter() - start, result


def total_memory() -> int | None:
    """Bytes of the GPU; None on a CPU."""
    return int(torch.cuda.mem_get_info()[1]) if torch.cuda.is_available() else None


def percent_in_use() -> float | None:
    """Of the GPU's memory, what others use included; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return 100 * (1 - free / total)
