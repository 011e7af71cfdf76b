"""Seconds that training stands still for a checkpoint, written beside it (`async_save`) and while it waits.

    python -m benchmarks.save_stall [--rounds 5] [--layers 12 --hidden 768 --vocabulary 50257]

A stall is the time that the training loop spends in saving one checkpoint. Under `async_save` the write goes on
behind it; the next save begins when it is over, as it does in a run whose checkpoints are further apart than a write
takes. The steps that training makes meanwhile are slower, because hashing and copying take a core and memory
bandwidth: that is the last column, the median step during a write over the median step without one. Rounds alternate
the two ways; medians.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, TrainerCallback

from benchmarks.results import Table, add_keep, options_of, publish
from morphing_trainer import MorphingConfig, MorphingTrainer
from morphing_trainer.data.samples import Blocks, collate
from morphing_trainer.models import new_model

LENGTH, SAVE, STEPS = 64, 4, 8


class Steps(TrainerCallback):
    """Takes the time of every step, and waits for a write only where the next save is due."""

    def __init__(self) -> None:
        self.trainer: Timed | None = None
        self.began = 0.0
        self.alone: list[float] = []
        self.beside: list[float] = []
        self.write = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        seconds, background = time.perf_counter() - self.began, self.trainer._background
        if state.global_step > SAVE and background.busy:
            self.beside.append(seconds)
        elif 1 < state.global_step <= SAVE:
            self.alone.append(seconds)
        if state.global_step == STEPS:
            while background.busy:
                time.sleep(0.01)


class Timed(MorphingTrainer):
    """Notes how long the loop is in saving."""

    stalls: list[float]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        start = time.perf_counter()
        super()._save_checkpoint(model, trial)
        self.stalls.append(time.perf_counter() - start)


def run(folder: Path, model: nn.Module, data: Blocks, beside: bool) -> tuple[float, Steps, int]:
    """The stall of one save, the steps around it, and the bytes of the checkpoint."""
    steps = Steps()
    arguments = MorphingConfig(
        str(folder),
        max_steps=STEPS + 1,
        per_device_train_batch_size=1,
        save_strategy="steps",
        save_steps=SAVE,
        eval_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        async_save=beside,
        overwrite_output_dir=True,
    )
    trainer = Timed(model, arguments, train_dataset=data, data_collator=collate, callbacks=[steps])
    trainer.stalls, steps.trainer = [], trainer
    trainer.train()
    size = sum(path.stat().st_size for path in (folder / f"checkpoint-{SAVE}").rglob("*") if path.is_file())
    return trainer.stalls[0], steps, size


def parser() -> argparse.ArgumentParser:
    parser = options_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often all is measured")
    parser.add_argument("--layers", type=int, default=12, help="blocks of the model")
    parser.add_argument("--hidden", type=int, default=768, help="its width")
    parser.add_argument("--vocabulary", type=int, default=50257, help="tokens that it knows")
    add_keep(parser)
    return parser


def main() -> None:
    options = parser().parse_args()
    config = GPT2Config(
        n_layer=options.layers,
        n_embd=options.hidden,
        n_head=max(1, options.hidden // 64),
        vocab_size=options.vocabulary,
        bos_token_id=0,
        eos_token_id=0,
    )
    data = Blocks(torch.randint(100, (2 * STEPS, LENGTH), dtype=torch.int32).numpy())
    stalls: dict[bool, list[float]] = {True: [], False: []}
    slower: list[float] = []
    with tempfile.TemporaryDirectory() as place, open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        for number in range(options.rounds):
            for beside in (True, False) if number % 2 else (False, True):
                stall, steps, size = run(Path(place) / "run", new_model(copy.deepcopy(config), seed=0), data, beside)
                stalls[beside].append(stall)
                if steps.beside:
                    slower.append(statistics.median(steps.beside) / statistics.median(steps.alone))
    waiting, beside_ = (statistics.median(stalls[key]) for key in (False, True))
    ratios = [theirs / ours for ours, theirs in zip(stalls[True], stalls[False], strict=True)]
    columns = ["stall, waiting", "stall, async_save", "ratio (median)", "range", "steps during a write"]
    row = [
        f"{options.layers} x {options.hidden}",
        f"{size / 1e9:.2f} GB",
        *(f"{seconds:.2f} s" for seconds in (waiting, beside_)),
        f"{statistics.median(ratios):.1f}",
        f"{min(ratios):.1f} to {max(ratios):.1f}",
        f"x {statistics.median(slower):.2f}" if slower else "-",
    ]
    told = f"How long training stands still for a checkpoint; medians of {options.rounds} rounds."
    publish(Table(["model", "checkpoint", *columns], [row], told), "benchmarks.save_stall", options.keep)


if __name__ == "__main__":
    main()
