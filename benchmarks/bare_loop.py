"""A training loop with nothing in it but training: the speed that a trainer is measured against.

Written by hand on PyTorch alone: the model's SDPA attention, fused AdamW, clipping, a linear decay of the rate, batches
cut from an array in memory. No logging, no callbacks, no data loader, no look at NaN; the losses stay on the device
until the end. It does what the trainers are told to do, on the same samples in the same order.
"""

from __future__ import annotations

import contextlib
import time

import numpy as np
import torch
from torch import nn

from morphing_trainer.data.samples import Blocks


def train(
    model: nn.Module,
    data: Blocks,
    *,
    order: np.ndarray[tuple[int], np.dtype[np.int64]],
    batch: int,
    steps: int,
    warm_up: int,
    learning_rate: float,
    bf16: bool,
    compiled: bool,
) -> tuple[float, list[float]]:
    """Train `steps` optimizer steps of `batch` samples, taken in `order`.

    Args:
        warm_up: steps that are not timed.

    Returns:
        Tokens per second, and the loss of every step.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)
    rows = torch.from_numpy(data.tokens[order].astype(np.int64))
    losses: list[torch.Tensor] = []
    start = 0.0
    for step in range(steps):
        if step == warm_up:
            _settle(device)
            reset_peak()
            start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (steps - step) / steps
        tokens = rows[step * batch : (step + 1) * batch].to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext():
            loss = forward(input_ids=tokens, labels=tokens).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    _settle(device)
    seconds = time.perf_counter() - start
    return (steps - warm_up) * batch * data.block_size / seconds, torch.stack(losses).tolist()


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def reset_peak() -> None:
    """From here on the most memory counts anew, on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def allocated() -> int:
    """Bytes of all tensors on the GPU."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def peak_above(held: int) -> int | None:
    """The most bytes of tensors on the GPU since `reset_peak`, beyond the `held` that belong to others."""
    return torch.cuda.max_memory_allocated() - held if torch.cuda.is_available() else None
