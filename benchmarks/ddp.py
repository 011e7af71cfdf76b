"""Tokens per second of two processes with DDP: an empty schedule against plain `Trainer`, and against one process.

    python -m benchmarks.ddp [--rounds 3] [--pairs 3] [--steps 60] [--layers 4 --hidden 128]

A round starts two processes with `torchrun` (one thread each, gloo), in which runs of the two trainers alternate, and
then one process with two threads and the same global batch. The ratio to `Trainer` is taken pair by pair, that to one
process round by round. The first steps of every run are not counted. The loss curves of the two trainers must be
identical.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, Trainer, TrainingArguments

from benchmarks.results import Table, add_keep, options_of, publish
from benchmarks.throughput import LENGTH, VOCABULARY, WARM_UP, Stopwatch
from morphing_trainer import MorphingConfig, MorphingTrainer
from morphing_trainer.data.samples import Blocks, collate
from morphing_trainer.models import new_model

GLOBAL_BATCH = 16


def run(kind: str, layers: int, hidden: int, steps: int) -> dict[str, Any]:
    """One run in this process, which may be one of several: tokens per second of all together, and losses."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    config = GPT2Config(
        n_layer=layers,
        n_embd=hidden,
        n_head=max(1, hidden // 32),
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        activation_function="gelu_pytorch_tanh",
        bos_token_id=0,
        eos_token_id=0,
    )
    generator = torch.Generator().manual_seed(0)
    shape = (GLOBAL_BATCH * steps, LENGTH)
    data = Blocks(torch.randint(VOCABULARY, shape, generator=generator, dtype=torch.int32).numpy())
    stopwatch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        arguments: dict[str, Any] = {
            "weight_decay": 0.0,  # of which the two have other defaults
            "output_dir": folder,
            "max_steps": steps,
            "per_device_train_batch_size": GLOBAL_BATCH // processes,
            "learning_rate": 1e-3,
            "logging_steps": 10,
            "logging_nan_inf_filter": False,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        } | ({"ddp_backend": "gloo"} if processes > 1 else {})
        common: dict[str, Any] = {"train_dataset": data, "data_collator": collate, "callbacks": [stopwatch]}
        trainer: Any
        if kind == "Trainer":
            trainer = Trainer(new_model(config, seed=0), TrainingArguments(**arguments), **common)
        else:
            trainer = MorphingTrainer(new_model(config, seed=0), MorphingConfig(**arguments), **common)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"speed": (steps - WARM_UP) * GLOBAL_BATCH * LENGTH / stopwatch.seconds, "losses": losses}


def work(options: argparse.Namespace) -> None:
    """In a process that has been started: runs in turn, and their results into a file."""
    several = "WORLD_SIZE" in os.environ
    found = []
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        for pair in range(options.pairs):
            kinds = ["Trainer", "MorphingTrainer"] if several else ["MorphingTrainer"]
            order = kinds if pair % 2 == 0 else kinds[::-1]
            found.append({kind: run(kind, options.layers, options.hidden, options.steps) for kind in order})
    if int(os.environ.get("RANK", "0")) == 0:
        Path(options.into).write_text(json.dumps(found))
    if several:
        torch.distributed.destroy_process_group()


def started(launcher: list[str], threads: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Start `work` and wait for what it finds."""
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "found.json"
        command = [sys.executable, "-m", *launcher, "benchmarks.ddp", "--into", str(into)]
        for name in ("pairs", "steps", "layers", "hidden"):
            command += [f"--{name}", str(getattr(options, name))]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, stderr=subprocess.PIPE)
        found: list[dict[str, Any]] = json.loads(into.read_text())
        return found


def parser() -> argparse.ArgumentParser:
    parser = options_of(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often two processes, then one, are started")
    parser.add_argument("--pairs", type=int, default=3, help="of runs in each round")
    parser.add_argument("--steps", type=int, default=60, help="steps of every run")
    parser.add_argument("--layers", type=int, default=4, help="blocks of the model")
    parser.add_argument("--hidden", type=int, default=128, help="its width")
    parser.add_argument("--into", default="", help=argparse.SUPPRESS)
    add_keep(parser)
    return parser


def main() -> None:
    options = parser().parse_args()
    if options.into:
        work(options)
        return
    pairs: list[dict[str, Any]] = []
    to_one: list[float] = []
    alone: list[float] = []
    for _ in range(options.rounds):
        two = started(["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"], 1, options)
        one = started([], 2, options)
        pairs += two
        alone += [each["MorphingTrainer"]["speed"] for each in one]
        to_one.append(_median(two, "MorphingTrainer") / _median(one, "MorphingTrainer"))
    for each in pairs:
        assert each["Trainer"]["losses"] == each["MorphingTrainer"]["losses"], "the loss curves differ"
    ratios = [each["MorphingTrainer"]["speed"] / each["Trainer"]["speed"] for each in pairs]
    columns = ["Trainer, 2 processes", "MorphingTrainer, 2 processes", "ratio (median)", "range", "1 process", "to it"]
    row = [
        f"{options.layers} x {options.hidden}",
        *(f"{_median(pairs, kind):,.0f} tokens/s" for kind in ("Trainer", "MorphingTrainer")),
        f"{statistics.median(ratios):.3f}",
        f"{min(ratios):.3f} to {max(ratios):.3f}",
        f"{statistics.median(alone):,.0f} tokens/s",
        f"{statistics.median(to_one):.2f}",
    ]
    told = f"DDP with an empty schedule, {GLOBAL_BATCH} x {LENGTH} tokens a step over all processes; medians of "
    told += f"{len(pairs)} pairs and {options.rounds} rounds; loss curves identical."
    publish(Table(["model", *columns], [row], told), "benchmarks.ddp", options.keep)


def _median(found: list[dict[str, Any]], kind: str) -> float:
    return float(statistics.median(each[kind]["speed"] for each in found))


if __name__ == "__main__":
    main()
