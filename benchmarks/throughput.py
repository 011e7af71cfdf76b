"""Tokens per second with an empty schedule, against plain `Trainer` on the same model, data and arguments.

    python -m benchmarks.throughput [--pairs 7] [--steps 60] [--layers 4 --hidden 128]

Runs of the two alternate in one process, so that both see the same machine; the ratio is taken pair by pair. The first
steps of every run are not counted. The loss curves must be identical, or the comparison means nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import statistics
import tempfile
import time
from typing import Any

import torch
from transformers import GPT2Config, Trainer, TrainerCallback, TrainingArguments

from morphing_trainer import MorphingConfig, MorphingTrainer
from morphing_trainer.data.samples import Blocks, collate
from morphing_trainer.models import new_model

WARM_UP = 10
BATCH, LENGTH, VOCABULARY = 8, 128, 2048


class Stopwatch(TrainerCallback):
    """Seconds from the end of the warm-up to the last step."""

    def __init__(self) -> None:
        self.start = self.seconds = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        if state.global_step == WARM_UP:
            self.start = now
        self.seconds = now - self.start


def run(kind: str, model: torch.nn.Module, data: Blocks, steps: int) -> tuple[float, list[float]]:
    """Tokens per second and losses of one run."""
    stopwatch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(open(os.devnull, "w")):
        arguments: dict[str, Any] = {
            "weight_decay": 0.0,  # of which the two have other defaults
            "output_dir": folder,
            "max_steps": steps,
            "per_device_train_batch_size": BATCH,
            "learning_rate": 1e-3,
            "logging_steps": 10,
            "logging_nan_inf_filter": False,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": not torch.cuda.is_available(),
            "disable_tqdm": True,
        }
        common: dict[str, Any] = {"train_dataset": data, "data_collator": collate, "callbacks": [stopwatch]}
        trainer: Any
        if kind == "Trainer":
            trainer = Trainer(copy.deepcopy(model), TrainingArguments(**arguments), **common)
        else:
            trainer = MorphingTrainer(copy.deepcopy(model), MorphingConfig(**arguments), **common)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return (steps - WARM_UP) * BATCH * LENGTH / stopwatch.seconds, losses


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=128)
    options = parser.parse_args()
    config = GPT2Config(
        n_layer=options.layers,
        n_embd=options.hidden,
        n_head=max(1, options.hidden // 32),
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        activation_function="gelu_pytorch_tanh",
        bos_token_id=0,
        eos_token_id=0,
    )
    model = new_model(config, seed=0)
    generator = torch.Generator().manual_seed(0)
    count = BATCH * options.steps
    data = Blocks(torch.randint(VOCABULARY, (count, LENGTH), generator=generator, dtype=torch.int32).numpy())
    plain, morphing = [], []
    for pair in range(options.pairs):
        order = ("Trainer", "MorphingTrainer") if pair % 2 == 0 else ("MorphingTrainer", "Trainer")
        results = {kind: run(kind, model, data, options.steps) for kind in order}
        assert results["Trainer"][1] == results["MorphingTrainer"][1], "the loss curves differ"
        plain.append(results["Trainer"][0])
        morphing.append(results["MorphingTrainer"][0])
    ratios = [ours / theirs for ours, theirs in zip(morphing, plain, strict=True)]
    print("| model | Trainer | MorphingTrainer, empty schedule | ratio (median) | ratio (range) | loss curves |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {options.layers} x {options.hidden} | {statistics.median(plain):,.0f} tokens/s | "
        f"{statistics.median(morphing):,.0f} tokens/s | {statistics.median(ratios):.3f} | "
        f"{min(ratios):.3f} to {max(ratios):.3f} | identical |"
    )


if __name__ == "__main__":
    main()
