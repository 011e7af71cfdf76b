"""Seconds until a training has begun, fresh and resumed, and until `morph` has answered.

    python -m benchmarks.start [--rounds 5] [--layers 4 --hidden 128] [--far 100000 --samples 10000000]

`train.py` and a script with plain `Trainer` (benchmarks/plain_train.py) load the same model and prepared data, and run
from the start of Python until the line of their first step appears; its loss must be the same.

A resume is timed from `train(resume)` to the beginning of the first step, in a new process, at step 100 and at step
`--far` of a data set of `--samples` short samples. Both checkpoints are of runs that made all these steps, with a log
line every ten; their steps compute no gradients, because only what they leave behind matters here.

`morph --help` and `morph validate` run from the start of Python to their end. Rounds alternate all of them; medians.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import GPT2Config

from benchmarks.arrival import Arrived, Arrives
from benchmarks.results import Table, add_keep, options_of, publish
from morphing_trainer import MorphingConfig, MorphingTrainer
from morphing_trainer.data.samples import Blocks, collate
from morphing_trainer.models import new_model

ROOT = Path(__file__).parent.parent
NEAR = 100
LENGTH, VOCABULARY, BATCH = 8, 16, 16
MORPH = [sys.executable, "-m", "morphing_trainer.cli.morph"]
SCHEDULE = ROOT / "configs" / "schedules" / "demo.yaml"
FIRST_LINE = re.compile(r"^step 1/1: loss ([\d.]+)|^\{'loss': '?([\d.]+)")
"""Of the log, as `train.py` and as `Trainer` write it."""


class Idle(MorphingTrainer):
    """A run whose steps compute nothing: samples are fetched, counted and logged, and the state is kept."""

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        return torch.zeros((), device=self.args.device)


# ---- From the start of Python to the first step ---------------------------------------------------------------------


def prepare(place: Path, layers: int, hidden: int) -> dict[str, list[str]]:
    """Data, model and config in `place`; the commands that train from them."""
    data, model, config = place / "data", place / "model", place / "config.yaml"
    shape = ["--vocab_size", "512", "--block_size", "64"]
    subprocess.run([*MORPH, "data", "prepare", "--output", str(data), *shape], check=True, stdout=subprocess.DEVNULL)
    sizes: dict[str, Any] = {"n_layer": layers, "n_embd": hidden, "n_head": max(1, hidden // 32)}
    made = GPT2Config(**sizes, vocab_size=512, n_positions=64, bos_token_id=0, eos_token_id=0)
    new_model(made, seed=0).save_pretrained(model)
    config.write_text(
        f"output_dir: {place / 'ours'}\nmodel_name_or_path: {model}\n"
        f"dataset_name: {data}\ntokenizer_name: {data / 'tokenizer'}\n"
        f"max_steps: 1\nper_device_train_batch_size: {BATCH}\nlogging_steps: 1\nsave_strategy: 'no'\n"
        f"eval_strategy: 'no'\nuse_cpu: {str(not torch.cuda.is_available()).lower()}\n"
    )
    plain = [str(ROOT / "benchmarks" / "plain_train.py"), str(data), str(model), str(place / "plain"), str(BATCH)]
    return {
        "train.py": [sys.executable, str(ROOT / "train.py"), "--config", str(config)],
        "plain Trainer": [sys.executable, *plain],
    }


def to_first_line(command: Sequence[str]) -> tuple[float, float]:
    """Seconds until a training has told of its first step, and the loss of that.

    Raises:
        RuntimeError: if it has not, or has failed later; with what it said.
    """
    start = time.perf_counter()
    found, said = None, []
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    output: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **output) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if found is None and (line_of := FIRST_LINE.match(line)):
                found = (time.perf_counter() - start, float(line_of[1] or line_of[2]))
    if found is None or process.returncode:
        raise RuntimeError(f"{command}: ended with {process.returncode}, first step told: {found}\n{''.join(said)}")
    return found


def to_end(command: Sequence[str]) -> float:
    """Seconds of a command, which must succeed."""
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


# ---- From `train(resume)` to the first step -------------------------------------------------------------------------


def trainer(kind: type[MorphingTrainer], folder: Path, file: Path, steps: int, more: int = 0) -> MorphingTrainer:
    """For a run that saves at `steps`, and ends there or so many steps later."""
    shape: dict[str, Any] = {"n_layer": 1, "n_embd": 8, "n_head": 1, "vocab_size": VOCABULARY, "n_positions": LENGTH}
    arguments: dict[str, Any] = {
        "max_steps": steps + more,
        "per_device_train_batch_size": BATCH,
        "logging_steps": 10,
        "lr_scheduler_type": "constant",
        "save_strategy": "steps",
        "save_steps": steps,
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }
    data = Blocks(np.memmap(file, np.uint16, "r").reshape(-1, LENGTH))
    model = new_model(GPT2Config(**shape, bos_token_id=0, eos_token_id=0), seed=0)
    config = MorphingConfig(str(folder), **arguments)
    return kind(model, config, train_dataset=data, data_collator=collate)


@contextlib.contextmanager
def quiet() -> Any:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def make_run(folder: Path, file: Path, steps: int) -> None:
    """A run of so many steps, and its checkpoint at the last one."""
    with quiet():
        trainer(Idle, folder, file, steps).train()


def resume(folder: Path, file: Path, steps: int) -> tuple[float, int]:
    """Seconds from `train(resume)` to the first step, and samples of this epoch that are behind the run by then."""
    arrives = Arrives()
    made = trainer(MorphingTrainer, folder, file, steps, more=NEAR)
    made.add_callback(arrives)
    start = time.perf_counter()
    with quiet(), contextlib.suppress(Arrived):
        made.train(str(folder / f"checkpoint-{steps}"))
    assert made.session is not None and made.state.global_step == steps
    return arrives.at - start, made.session.state.cursor.position


def in_new_process(work: Callable[[], Any]) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(work).result()


# ---- All of it ------------------------------------------------------------------------------------------------------


def measure(place: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of everything, round by round.

    Raises:
        AssertionError: if the trainings do not begin with the same loss, or a resume is not where it should be.
    """
    trainings = prepare(place, options.layers, options.hidden)
    file = place / "tokens.bin"
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (options.samples, LENGTH), np.uint16)
    tokens.tofile(file)
    runs = {steps: place / f"run-{steps}" for steps in (NEAR, options.far)}
    for steps, folder in runs.items():
        in_new_process(partial(make_run, folder, file, steps))
    found: dict[str, list[float]] = {}
    for turn in range(options.rounds):
        losses = {}
        for name, command in sorted(trainings.items(), reverse=turn % 2 == 0):
            shutil.rmtree(place / "ours", ignore_errors=True)  # to clear it up would take its time, too
            seconds, losses[name] = to_first_line(command)
            found.setdefault(name, []).append(seconds)
        assert abs(losses["train.py"] - losses["plain Trainer"]) < 0.002, f"first losses differ: {losses}"
        for steps, folder in sorted(runs.items(), reverse=turn % 2 == 0):
            seconds, position = in_new_process(partial(resume, folder, file, steps))
            assert position == steps * BATCH, f"step {steps} resumed at sample {position}"
            found.setdefault(f"resume {steps}", []).append(seconds)
        for name in ("--help", f"validate {SCHEDULE.relative_to(ROOT)}"):
            found.setdefault(name, []).append(to_end([*MORPH, *name.split()]))
    return found


def difference(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Median and range of what ours take longer, taken round by round."""
    found = [one - other for one, other in zip(ours, theirs, strict=True)]
    return f"{statistics.median(found):+.2f} s ({min(found):+.2f} to {max(found):+.2f})"


def table(found: dict[str, list[float]], options: argparse.Namespace) -> Table:
    def seconds(name: str) -> str:
        return f"{statistics.median(found[name]):.2f} s"

    first, near, far = "plain Trainer", f"resume {NEAR}", f"resume {options.far}"
    rows = [
        ["train.py to its first step", seconds("train.py"), f"plain Trainer: {seconds(first)}"],
        [f"resume at step {options.far:,}", seconds(far), f"at step {NEAR}: {seconds(near)}"],
    ]
    rows[0].append(difference(found["train.py"], found[first]))
    rows[1].append(difference(found[far], found[near]))
    commands = [name for name in found if name.startswith(("--help", "validate"))]
    rows += [[f"`morph {name}`", seconds(name), "-", "-"] for name in commands]
    told = (
        f"Medians of {options.rounds} rounds (ranges). First step: {options.layers} x {options.hidden}, {BATCH} x 64 "
        f"tokens, the same loss. Resumes: {options.samples:,} samples, {BATCH} a step."
    )
    return Table(["", "time", "against", "longer by"], rows, told)


def parser() -> argparse.ArgumentParser:
    parser = options_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often all is measured")
    parser.add_argument("--layers", type=int, default=4, help="blocks of the model")
    parser.add_argument("--hidden", type=int, default=128, help="its width")
    parser.add_argument("--far", type=int, default=100_000, help="steps of the long run that is resumed")
    parser.add_argument("--samples", type=int, default=10_000_000, help="of the data set that runs are resumed on")
    add_keep(parser)
    return parser


def main() -> None:
    options = parser().parse_args()
    if options.far * BATCH >= options.samples:
        parser().error(
            f"--samples must be more than {options.far * BATCH:,}, or the long run goes through more than one epoch"
        )
    with tempfile.TemporaryDirectory() as place:
        found = measure(Path(place), options)
    publish(table(found, options), "benchmarks.start", options.keep)


if __name__ == "__main__":
    main()
