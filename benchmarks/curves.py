"""Whether runs have trained the same."""

from __future__ import annotations

import numpy as np


def deviation(losses: list[float], expected: list[float], steps: int) -> float:
    """How far a loss curve is from that of `Trainer`, at most, relative to it.

    Args:
        losses: of every tenth step, or of every step.
        expected: those of `Trainer`.
        steps: of both runs.
    """
    if len(losses) == steps:  # one per step: averaged as the trainers do it
        every = min(10, steps)
        losses = [float(np.mean(losses[end - every : end])) for end in range(every, steps + 1, every)]
    pairs = list(zip(losses, expected, strict=False))
    return max((abs(ours - theirs) / abs(theirs) for ours, theirs in pairs), default=float("nan"))
