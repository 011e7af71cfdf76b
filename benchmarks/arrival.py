"""When a run's first step begins."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback


class Arrived(Exception):
    """The first step begins."""


class Arrives(TrainerCallback):
    """Ends a run where its first step begins, and takes the time."""

    def __init__(self) -> None:
        self.at = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.at = time.perf_counter()
        raise Arrived
