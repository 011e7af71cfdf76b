"""Seconds that a resume takes, against reading the files of its checkpoint once.

    python -m benchmarks.resume_cost [--rounds 5] [--layers 12 --hidden 768 --vocabulary 50257]

A resume spans from the call of `train(resume)` to the beginning of the first step, less what a fresh start spends
there (`train()` of a model of the same size, up to its first step). It finds the checkpoint, hashes every file of it,
rebuilds the model, loads weights, optimizer, schedule and random states, and takes up the data where they stood.
Each is timed in a process of its own, as it is in life: memory that a process has used before is cheaper to fill.

Reading is `Path.read_bytes()` of every file, one after the other, until all of them are in memory, where a resume
needs them too; "through a buffer" is reading them into one buffer of 4 MiB over and over, for comparison. In the row
"cold", the files are dropped from the page cache right before each measurement (Linux); in the row "warm", they are all
in it, and reading them is no more than copying memory. Right before, because memory that lies free for a second may go
back to the host of a virtual machine, and takes longer to fill then. Rounds alternate reading, resume and fresh start;
medians. Other work on a machine only ever adds to a time, so "of the fastest" is the fastest resume, less the fastest
fresh start, to the fastest reading.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config

from benchmarks.arrival import Arrived, Arrives
from benchmarks.results import Table, add_keep, options_of, publish
from morphing_trainer import MorphingConfig, MorphingTrainer
from morphing_trainer.data.samples import Blocks, collate
from morphing_trainer.models import new_model

LENGTH = 16
MEASUREMENTS = ("passing", "reading", "resume", "fresh")
BUFFER = 4 << 20


def make(folder: Path, model: torch.nn.Module, data: Blocks, callbacks: list[Any], steps: int = 4) -> MorphingTrainer:
    arguments = MorphingConfig(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
    )
    return MorphingTrainer(model, arguments, train_dataset=data, data_collator=collate, callbacks=callbacks)


def to_first_step(folder: Path, config: GPT2Config, data: Blocks, resume: bool, before: Callable[[], None]) -> float:
    """Seconds from `train` to the first step; `before` is called right before."""
    arrives = Arrives()
    trainer = make(folder, new_model(copy.deepcopy(config), seed=0), data, [arrives])
    trainer.args.overwrite_output_dir = not resume
    before()
    start = time.perf_counter()
    with contextlib.suppress(Arrived):
        trainer.train(resume or None)
    return arrives.at - start


def read(files: list[Path]) -> float:
    """Seconds to read them all into memory."""
    start = time.perf_counter()
    content = [path.read_bytes() for path in files]
    seconds = time.perf_counter() - start
    del content
    return seconds


def pass_through(files: list[Path]) -> float:
    """Seconds to read them all, through one buffer."""
    buffer = bytearray(BUFFER)
    start = time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - start


def settle(files: list[Path], cold: bool) -> None:
    """Put the files into the page cache, or out of it."""
    for path in files:
        with path.open("rb") as file:
            if cold:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if not cold:
        pass_through(files)


def in_new_process(what: str, run: Path, config: GPT2Config, cold: bool) -> float:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, what, run, config, cold).result()


def saved_files(run: Path) -> list[Path]:
    return sorted(path for path in (run / "checkpoint-2").rglob("*") if path.is_file())


def measure(what: str, run: Path, config: GPT2Config, cold: bool) -> float:
    """Seconds of one measurement, in this process.

    Args:
        what: of `MEASUREMENTS`.
        run: folder of a run whose checkpoint is resumed.
    """
    files = saved_files(run)
    if what in ("passing", "reading"):
        settle(files, cold)
        return pass_through(files) if what == "passing" else read(files)
    folder = run if what == "resume" else run.with_name("fresh")
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        return to_first_step(folder, config, samples(), what == "resume", partial(settle, files, cold))


def samples() -> Blocks:
    return Blocks(
        torch.randint(100, (8, LENGTH), dtype=torch.int32, generator=torch.Generator().manual_seed(0)).numpy()
    )


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
    rows: dict[bool, list[list[float]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
            make(run, new_model(copy.deepcopy(config), seed=0), samples(), [], steps=2).train()
        size = sum(path.stat().st_size for path in saved_files(run))
        for _ in range(options.rounds):
            for cold in (True, False):
                rows[cold].append([in_new_process(what, run, config, cold) for what in MEASUREMENTS])
    table = []
    for cold, found in rows.items():
        ratios = [(resuming - fresh) / reading for _, reading, resuming, fresh in found]
        passing, reading, resuming, fresh = (statistics.median(column) for column in zip(*found, strict=True))
        fastest = [min(column) for column in zip(*found, strict=True)]
        table.append(
            [
                "cold" if cold else "warm",
                *(f"{seconds:.2f} s" for seconds in (passing, reading, resuming, fresh)),
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f} to {max(ratios):.2f}",
                f"{(fastest[2] - fastest[3]) / fastest[1]:.2f}",
            ]
        )
    columns = ["files", "through a buffer", "reading", "resume", "fresh start", "(resume - fresh) / reading", "range"]
    told = f"GPT-2 of {options.layers} x {options.hidden}, a checkpoint of {size / 1e9:.2f} GB; medians of "
    told += f"{options.rounds} rounds."
    publish(Table([*columns, "of the fastest"], table, told), "benchmarks.resume_cost", options.keep)


if __name__ == "__main__":
    main()
