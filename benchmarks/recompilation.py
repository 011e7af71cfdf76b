"""How much longer the first compiled step after an operation takes than the next ones: see `benchmarks.morph_cost`."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch._inductor.utils import fresh_cache
from transformers import GPT2Config, TrainerCallback

from morphing_trainer import MorphingConfig, MorphingTrainer
from morphing_trainer.data.samples import Blocks, collate
from morphing_trainer.models import new_model

LENGTH = 32
APART = 4
"""Steps before an operation, and after it."""


class Clock(TrainerCallback):
    """Seconds of every step."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(time.perf_counter() - self._began)


def recompilation(operations: Sequence[dict[str, Any]], config: GPT2Config) -> float:
    """Seconds of the first step after the last of these operations, less the median of the steps after that.

    A run of `MorphingTrainer` with `torch_compile` at 1 x 32 tokens, whose compiler finds nothing that was compiled
    before.
    """
    clock = Clock()
    steps = APART * (len(operations) + 1)
    tokens = torch.randint(config.vocab_size, (steps, LENGTH), generator=torch.Generator().manual_seed(0))
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        stack.enter_context(fresh_cache())
        arguments = MorphingConfig(
            folder,
            max_steps=steps,
            per_device_train_batch_size=1,
            torch_compile=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        MorphingTrainer(
            new_model(config, seed=0),
            arguments,
            train_dataset=Blocks(tokens.to(torch.int32).numpy()),
            data_collator=collate,
            schedule=[{**operation, "max_wait_iters": APART} for operation in operations],
            callbacks=[clock],
        ).train()
    first, *later = clock.steps[-APART:]
    return first - statistics.median(later)
