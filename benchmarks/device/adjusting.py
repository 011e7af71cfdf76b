"""Whether `adjust_batch_size` hits its target."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import TrainerCallback

from benchmarks.device.budget import Figures
from benchmarks.device.memory import clean, percent_in_use, settle
from benchmarks.device.morphs import train
from benchmarks.throughput import Size

STEPS = 3
"""Steps before it, and after it."""


class InUse(TrainerCallback):
    """Percent of the GPU's memory in use, after every step: what PyTorch has once taken it keeps."""

    def __init__(self) -> None:
        self.percent: list[float | None] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        settle()
        self.percent.append(percent_in_use())


def adjusted(model: str, size: Size, percent: float, most: int) -> Iterator[Figures]:
    """A run that asks for a share of the memory: the batch it gets, and what its steps then take.

    Args:
        most: samples in a batch, and in the data.
    """
    clean()
    seen = InUse()
    value = {"target_vram_percent": percent, "max_batch_size": most}
    schedule = [{"name": "adjust_batch_size", "value": value, "max_wait_iters": STEPS}]
    made = train(size, schedule, 2 * STEPS, seen, count=most)
    assert made.session is not None
    (executed,) = made.session.state.executed
    del made
    clean()
    yield {
        "table": "adjusting",
        "model": model,
        "asked_percent": percent,
        "largest": most,
        "batch": executed["measured"]["batch_size"],
        "trial_percent": executed["measured"]["memory_percent"],
        "run_percent": seen.percent[-1],
    }
