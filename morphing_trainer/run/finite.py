"""Whether losses and gradients are finite, found out without waiting for the device that computes them."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch
from torch import Tensor

LOSS, GRADIENT = 1, 1 << 16
"""What may be bad. As numbers that can be added up over thousands of ranks and still be told apart."""


def what(code: int) -> str:
    """What a sum of `LOSS` and `GRADIENT` says, in words."""
    words = ["loss"] * bool(code % GRADIENT) + ["gradient"] * bool(code // GRADIENT)
    return " or ".join(words)


def all_finite(tensor: Tensor) -> bool:
    """Whether no number of a tensor, a real one, is NaN or infinite; waits for its device.

    NaN and infinity are among the least and the largest, which are found in one pass and without a copy;
    `torch.isfinite` makes several tensors of this size.
    """
    tensor = tensor.detach()
    return tensor.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


class Finite:
    """Looks at the losses and the gradient norm of every step.

    On the CPU a step's answer is there at once. On a GPU it is copied beside the work, and is there when the next step
    has been queued: reading it then waits for nothing that is still to be computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._at_hand = device.type == "cpu"
        self._beside = device.type == "cuda"
        self._flags = torch.zeros(2, dtype=torch.bool, device=device)
        """(loss, gradient) of the running step."""
        self._copies: deque[tuple[int, Tensor, Any]] = deque()
        self.step = 0
        """The step that the last answer is of."""

    def begin(self) -> None:
        """A step begins, perhaps for the second time."""
        self._flags = torch.zeros_like(self._flags)

    def loss(self, loss: Tensor) -> None:
        """The loss of a micro-batch."""
        self._look(0, loss.detach())

    def gradient(self, norm: Any) -> None:
        """The norm of the gradients of a step, over all parameters."""
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else torch.as_tensor(norm, device=self._device)
        self._look(1, norm.detach())

    def _look(self, place: int, number: Tensor) -> None:
        if not self._at_hand:
            self._flags[place] |= ~torch.isfinite(number).all()
        elif not math.isfinite(number.item()):  # at every step, and far cheaper than operations on tensors
            self._flags[place] = True

    def now(self) -> int:
        """What is bad in the running step. Waits for the device."""
        return _code(self._flags)

    def end(self, step: int, *, counts: bool = True) -> int:
        """The running step is made; what was bad in the last one that is known by now, 0 for nothing.

        Args:
            counts: otherwise all is well with it, because its update was left out.
        """
        flags = self._flags if counts else torch.zeros_like(self._flags)
        if not self._beside:
            self.step = step
            return _code(flags)
        host = torch.empty(2, dtype=torch.bool, pin_memory=True)
        host.copy_(flags, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._copies.append((step, host, copied))
        return self._read() if len(self._copies) > 1 else 0

    @property
    def is_behind(self) -> bool:
        """Whether the last step's answer has not been read."""
        return bool(self._copies)

    def catch_up(self) -> int:
        """What was bad in steps that were not read yet."""
        code = 0
        while self._copies and not code:
            code = self._read()
        return code

    def _read(self) -> int:
        self.step, host, copied = self._copies.popleft()
        copied.synchronize()
        return _code(host)


def _code(flags: Tensor) -> int:
    loss, gradient = flags.tolist()
    return int(LOSS * loss + GRADIENT * gradient)
