"""The most memory that a piece of work needs, in percent of what there is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import nn
from torch.optim import Optimizer

from morphing_trainer.engine import options_of
from morphing_trainer.memory.system import Amount, system_memory

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_percent(
    work: Callable[[], None],
    device: torch.device,
    processes: int = 1,
    ahead: int = 0,
    machine: Callable[[], Amount] = system_memory,
) -> float:
    """Memory in use at the peak of `work`, in percent of the device's, or without one of the machine's.

    What others use counts too: the question is what still fits.

    Args:
        processes: of this run on this machine. On a CPU they share its memory, and all do this work at once.
        ahead: bytes that this process does not hold yet but will.
        machine: tells what is in use of the machine's memory.

    Raises:
        Exception: what `work` raises.
    """
    if device.type == "cuda":
        return _on_device(work, device, ahead)
    before, own = machine(), int(psutil.Process().memory_info().rss)
    _reset_process_peak()
    work()
    growth = max(0, process_peak() - own) + ahead
    return 100 * (before.used + processes * growth) / before.total


def _on_device(work: Callable[[], None], device: torch.device, ahead: int) -> float:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    free, total = map(int, torch.cuda.mem_get_info(device))
    others = total - free - torch.cuda.memory_reserved(device)
    work()
    return 100 * (others + torch.cuda.max_memory_reserved(device) + ahead) / total


def process_peak() -> int:
    """The most bytes that this process has held in memory, since `_reset_process_peak` where the system can do that."""
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):  # not Linux
        held = psutil.Process().memory_info()
        return int(getattr(held, "peak_wset", held.rss))  # Windows knows its peak


def _reset_process_peak() -> None:
    with contextlib.suppress(OSError):  # then the peak of the whole run so far counts: too much, never too little
        _CLEAR.write_text("5", encoding="utf-8")


def state_bytes_ahead(optimizer: Optimizer) -> int:
    """Bytes that an optimizer will take for parameters that it remembers nothing of yet: before its first step, all."""
    waiting: list[torch.Tensor] = [
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad and not optimizer.state.get(parameter)
    ]
    if not waiting:
        return 0
    share = _state_share(optimizer, waiting[0])
    return round(sum(parameter.numel() * parameter.element_size() for parameter in waiting) * share)


def _state_share(optimizer: Optimizer, like: torch.Tensor) -> float:
    """Bytes of state per byte of parameter, found by a step on a matrix."""
    matrix = nn.Parameter(torch.zeros(64, 64, device=like.device, dtype=like.dtype))
    matrix.grad = torch.ones_like(matrix)
    try:
        trial = type(optimizer)([matrix], **options_of(optimizer))
        trial.step()
    except Exception:  # it needs more than a matrix and its gradient: take it for Adam, which few exceed
        return 2.0
    held = [value for value in trial.state[matrix].values() if isinstance(value, torch.Tensor)]
    return sum(value.numel() * value.element_size() for value in held) / (matrix.numel() * matrix.element_size())
