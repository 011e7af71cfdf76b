"""All that matters on a GPU, in eight minutes: speed, MFU, memory, what morphs cost, and the largest batch.

    python -m benchmarks.gpu [--minutes 8] [--json FILE] [--markdown FILE]

GPT-2 small and medium train in bf16 at 1024 tokens, compiled and eager: a bare loop, plain `Trainer`, and
`MorphingTrainer` with an empty schedule. Parts are measured in order of importance; what does not fit into the time is
left out, and what fails is told, both by name. The files are written after every part. Without a GPU, or with `--tiny`,
tiny models show that the command works; their figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.device.adjusting import adjusted
from benchmarks.device.budget import Account, Part, carry_out
from benchmarks.device.memory import clean, total_memory
from benchmarks.device.morphs import ADAPTERS, alone, in_a_run
from benchmarks.device.peaks import known_peak
from benchmarks.device.report import Place, as_data, markdown
from benchmarks.device.speed import Speeds, sized
from benchmarks.results import LIBRARIES, device, options_of
from benchmarks.throughput import WARM_UP, Size
from morphing_trainer.run.history import write_whole

BEFORE_AND_AFTER = 15.0
"""Seconds of the budget for starting and for writing; a tenth of a small one."""
STEPS = 60
ROUNDS = 3
GROWTH: list[dict[str, Any]] = [{"name": "stack_layers", "value": 2}, {"name": "widen_mlp", "value": 2}]
COMPILED, EAGER = True, False


def parts_for_a_gpu(tell: Any) -> list[Part]:
    """What is measured, in order of importance, with seconds as an H100 may need them."""
    small, medium = sized(Size(12, 768, 1, 1024, 50257)), sized(Size(24, 1024, 1, 1024, 50257))
    half = replace(small, layers=6)  # with the batch that fits what it grows to
    speeds = {
        (name, compiled): Speeds(name, size, compiled, STEPS, WARM_UP, tell)
        for name, size in (("GPT-2 small", small), ("GPT-2 medium", medium))
        for compiled in (COMPILED, EAGER)
    }

    def speed(name: str, compiled: bool, seconds: float, turn: int = 0) -> Part:
        return _speed(speeds[name, compiled], seconds, turn)

    first = [
        speed("GPT-2 small", COMPILED, 90),
        Part("GPT-2 small: morphs", 20, partial(alone, "GPT-2 small", small)),
        *(_adjusting("GPT-2 small", small, percent, 1024, 20) for percent in (82, 50)),
        speed("GPT-2 medium", COMPILED, 140),
        speed("GPT-2 small", EAGER, 30),
        _run("6 layers of GPT-2 small", half, GROWTH[:1], COMPILED, 50),
        speed("GPT-2 medium", EAGER, 40),
        Part("GPT-2 medium: morphs", 25, partial(alone, "GPT-2 medium", medium)),
        _run("6 layers of GPT-2 small", half, [*GROWTH, ADAPTERS], EAGER, 15),
    ]
    again = [
        speed(name, compiled, seconds, turn)
        for turn in range(1, ROUNDS)
        for name, compiled, seconds in (
            ("GPT-2 small", COMPILED, 60),
            ("GPT-2 small", EAGER, 30),
            ("GPT-2 medium", COMPILED, 100),
            ("GPT-2 medium", EAGER, 40),
        )
    ]
    return [*first, *again]


def tiny_parts(tell: Any, compiled: bool) -> list[Part]:
    """The same on a model that any machine trains in no time."""
    size = Size(2, 32, 2, 16, 64)
    speeds = [Speeds("tiny", size, mode, 12, 2, tell) for mode in ([COMPILED] if compiled else []) + [EAGER]]
    return [
        *(_speed(each, 5, turn) for turn in range(2) for each in speeds),
        Part("tiny: morphs", 2, partial(alone, "tiny", size)),
        _adjusting("tiny", size, 100, 16, 2),
        *([_run("tiny", size, GROWTH[:1], COMPILED, 5)] if compiled else []),
        _run("tiny", size, [*GROWTH, ADAPTERS], EAGER, 2),
    ]


def _speed(speeds: Speeds, seconds: float, turn: int) -> Part:
    name = f"{speeds.model}, {speeds.mode}: speed"
    work = partial(speeds.round, turn)
    return Part(f"{name}, round {turn + 1}", seconds, work, f"{name} {turn > 0}", compiles=speeds.compiled)


def _run(name: str, size: Size, operations: list[dict[str, Any]], compiled: bool, seconds: float) -> Part:
    mode = "compiled" if compiled else "eager"
    work = partial(in_a_run, name, size, operations, compiled)
    return Part(f"{name}, {mode}: morphs in a run", seconds, work, compiles=compiled)


def _adjusting(name: str, size: Size, percent: float, most: int, seconds: float) -> Part:
    return Part(f"{name}: adjust_batch_size to {percent:g} %", seconds, partial(adjusted, name, size, percent, most))


def place(said: float | None, tiny: bool, arguments: Sequence[str]) -> Place:
    """Where this runs. `said` is the peak by the user, in TFLOP/s."""
    versions = {"Python": sys.version.split()[0], "CUDA": torch.version.cuda or "none"}
    for name in ("morphing_trainer", *LIBRARIES, "triton"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    peak, source = (said, "as said by --peak") if said is not None else known_peak(device()) or (None, "")
    command = shlex.join(["python", "-m", "benchmarks.gpu", *arguments])
    return Place(device(), total_memory(), peak, source, versions, command, tiny)


def new_file(text: str) -> Path:
    path = Path(text)
    if path.exists():
        raise argparse.ArgumentTypeError(f"{text} exists already; name another file, or delete it")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent} for {text}")
    return path


def parser() -> argparse.ArgumentParser:
    parser = options_of(__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="in all; what does not fit is left out")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write all figures here, for machines")
    parser.add_argument("--markdown", type=new_file, metavar="FILE", help="write the tables here, instead of printing")
    parser.add_argument("--peak", type=float, metavar="TFLOPS", help="dense bf16 peak of a device that is not known")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try it out; always so without a GPU")
    parser.add_argument("--compiled", action="store_true", help="compile the tiny model too, which may take a minute")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    began = time.monotonic()
    options = parser().parse_args(arguments)
    if torch.cuda.device_count() > 1:  # plain `Trainer` would split every batch between them
        parser().error(f"one GPU is measured, {torch.cuda.device_count()} are there: set CUDA_VISIBLE_DEVICES=0")
    tiny = options.tiny or not torch.cuda.is_available()
    where = place(options.peak, tiny, sys.argv[1:] if arguments is None else arguments)

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def written(account: Account) -> None:
        seconds = time.monotonic() - began
        if options.json:
            write_whole(options.json, json.dumps(as_data(account, where, seconds), indent=1, ensure_ascii=False) + "\n")
        if options.markdown:
            write_whole(options.markdown, markdown(account, where, seconds))

    tell(f"{where.device}, {options.minutes:g} minutes{', a tiny model: its figures mean nothing' if tiny else ''}")
    parts = tiny_parts(tell, options.compiled) if tiny else parts_for_a_gpu(tell)
    limit = 60 * options.minutes
    account = carry_out(parts, limit - min(BEFORE_AND_AFTER, limit / 10), tell, written)
    clean()
    written(account)
    if not options.markdown:
        print(markdown(account, where, time.monotonic() - began))
    for line in account.failed:
        tell(f"failed: {line}")
    if account.interrupted:
        kept = " and ".join(str(path) for path in (options.json, options.markdown) if path)
        tell(f"stopped: what was measured until then stands in {kept}" if kept else "stopped")
    return 130 if account.interrupted else 0 if account.figures else 1


if __name__ == "__main__":
    warnings.filterwarnings("ignore")  # of libraries, about each other
    sys.exit(main())
