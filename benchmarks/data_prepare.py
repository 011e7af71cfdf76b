"""`morph data prepare` of a text file: seconds for each part, and the most memory that it and its workers ever held.

    python -m benchmarks.data_prepare [--megabytes 1000] [--workers 1] [--mode packing] [--folder FOLDER]

The text is generated, one file of one document, and then prepared by a process of its own, whose memory, and that of
its children, is looked at ten times a second. *Own* memory is what the machine must have; *resident* also counts pages
of mapped files, which the system takes back when it needs them. The second run finds the samples made, and shows what
the libraries take by themselves.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.data_corpus import write_corpus
from benchmarks.results import Table, add_keep, options_of, publish


class Measured(NamedTuple):
    seconds: float
    own: float
    resident: float


def measure(command: list[str], environment: dict[str, str]) -> Measured:
    """Seconds, and the most own and resident memory in MB that the command and its children held together."""
    start, own, resident = time.perf_counter(), 0.0, 0.0
    process = psutil.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        sizes = []
        for each in (process, *_children(process)):
            try:
                memory = each.memory_info()
            except psutil.Error:  # it has ended meanwhile
                continue
            sizes.append(((memory.rss - memory.shared) / 1e6, memory.rss / 1e6))
        own = max(own, sum(size for size, _ in sizes))
        resident = max(resident, sum(size for _, size in sizes))
        time.sleep(0.1)
    assert process.returncode == 0, "the command failed"
    return Measured(time.perf_counter() - start, own, resident)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = process.children(recursive=True)
    except psutil.Error:
        return []
    return found


def parser() -> argparse.ArgumentParser:
    parser = options_of(__doc__)
    parser.add_argument("--megabytes", type=float, default=1000, help="of generated text")
    parser.add_argument("--workers", type=int, default=1, help="processes that tokenize")
    parser.add_argument(
        "--mode", default="packing", choices=["packing", "continuation"], help="as morph data prepare has"
    )
    parser.add_argument("--folder", type=Path, help="to work in, instead of a temporary one")
    add_keep(parser)
    return parser


def main() -> None:
    options = parser().parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        text = folder / f"corpus_{options.megabytes:g}.txt"
        if not text.exists():
            write_corpus(text, options.megabytes)
        environment = os.environ | {
            "HF_DATASETS_CACHE": str(Path(temporary) / "cache"),
            "HF_HUB_OFFLINE": "1",
            "RAYON_NUM_THREADS": "1",  # one core for each worker
            "OMP_NUM_THREADS": "1",
        }
        given = ["--train_file", str(text), "--sample_mode", options.mode]
        given += ["--preprocessing_num_workers", str(options.workers)]
        rows: list[list[str]] = []
        for number, what in enumerate((f"prepare, {options.mode}, tokenizer trained", "again, samples found made")):
            target = str(Path(temporary) / f"prepared{number}")
            command = [
                sys.executable,
                "-m",
                "morphing_trainer.cli.morph",
                "data",
                "prepare",
                "--output",
                target,
                *given,
            ]
            found = measure([*command, *given], environment)
            speeds = [f"{found.seconds:.0f} s", f"{options.megabytes / found.seconds:.1f}"]
            rows.append([what, *speeds, f"{found.own:,.0f} MB", f"{found.resident:,.0f} MB"])
    told = f"One file of {options.megabytes:,.0f} MB of text; processes that prepare: {options.workers}."
    columns = ["what", "time", "MB/s", "own memory, peak", "resident, with mapped pages, peak"]
    publish(Table(columns, rows, told), "benchmarks.data_prepare", options.keep)


if __name__ == "__main__":
    main()
