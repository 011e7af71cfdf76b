"""Processor time of training steps, kept through stops and resumes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


class Meter(TrainerCallback):
    """Adds up processor seconds, of all threads, from the beginning of each step to its end.

    Morphs, evaluations and saves are not in them.

    Attributes:
        seconds: so far, after each optimizer step.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.seconds: dict[int, float] = {0: 0.0}
        self._began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kept = json.loads(self.file.read_text()) if state.global_step else {}
        self.seconds = {0: 0.0} | {int(step): value for step, value in kept.items() if int(step) <= state.global_step}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        spent = time.process_time() - self._began
        self.seconds[state.global_step] = self.seconds[state.global_step - 1] + spent
        if control.should_save:
            self.file.write_text(json.dumps(self.seconds))
