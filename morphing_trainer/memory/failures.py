"""What an error is when memory runs out, on any device."""

from __future__ import annotations

import torch
from accelerate.utils.memory import should_reduce_batch_size

_SIGNS = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: not enough memory",  # Windows; elsewhere "can't allocate memory", which accelerate knows
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: of the device, of the process, or of Python itself."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return should_reduce_batch_size(error) or any(sign in str(error) for sign in _SIGNS)


def brief(error: BaseException) -> str:
    """An error in one line: PyTorch appends advice and, on a CPU, a stack of C++ frames."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
