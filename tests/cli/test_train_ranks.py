"""`train.py` in several processes: what each of them says when one is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from morphing_trainer.cli import train
from tests.trainer.program import finish, started, wait_until

ROOT = Path(__file__).parents[2]
SHAPE = "--n_layer 1 --n_embd 16 --n_head 1 --vocab_size 300 --block_size 16 --max_steps 100000 --use_cpu"


@dataclass(frozen=True)
class Run:
    folder: Path
    text: Path


def trained(job: Run, environment: Mapping[str, str]) -> None:
    """In a process: rank 1 is killed when the run has begun."""
    os.environ.update(environment)
    rank = int(environment["RANK"])
    log = os.open(job.folder.parent / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if rank == 1:

        def kill() -> None:
            wait_until((job.folder / "journal.jsonl").exists)
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()
    argv = [*SHAPE.split(), "--train_file", str(job.text), "--output_dir", str(job.folder), "--report_to", "none"]
    os._exit(train.main(argv))


def launched(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The real script in two processes, started by `torchrun`, which ends the other when one has failed."""
    sizes = "--n_layer 1 --n_embd 16 --n_head 1 --vocab_size 300 --block_size 16 --max_steps 20 --report_to none"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [str(Path(sys.executable).parent / "torchrun"), "--nproc_per_node", "2", "--master_port", port]
    command += [str(ROOT / "train.py"), *sizes.split(), "--output_dir", str(folder), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)


def test_the_reason_is_told_before_the_launcher_ends_all(tmp_path: Path) -> None:
    done = launched(tmp_path / "run", "--use_cpu", "--learning_rate", "1e30", "--max_grad_norm", "0")
    assert done.returncode
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "NaN" in said
    assert (tmp_path / "run" / "report.html").exists()


def test_processes_that_do_not_find_each_other_are_refused(tmp_path: Path) -> None:
    """Without an accelerator, and not told to use the CPU; they would train in the same folder, side by side."""
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    done = launched(tmp_path / "run")
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said.startswith(
        "error: training arguments: 2 processes were launched, and each takes itself for the only one"
    )
    assert "--use_cpu" in said
    assert not (tmp_path / "run").exists()


def test_the_others_say_in_a_line_that_one_was_killed(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{number} bottles of beer on the wall\n" for number in range(2000)))
    assert finish(started(trained, Run(tmp_path / "run", text), 2)) == [1, -signal.SIGKILL]
    told = (tmp_path / "0.log").read_text()
    assert "Traceback" not in told
    assert told.splitlines()[-1].startswith("error: ")
