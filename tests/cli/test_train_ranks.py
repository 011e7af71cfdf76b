"""`train.py` in several processes: what each of them says when one is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from morphing_trainer.cli import train
from tests.trainer.program import finish, started, wait_until

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


def test_the_others_say_in_a_line_that_one_was_killed(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{number} bottles of beer on the wall\n" for number in range(2000)))
    assert finish(started(trained, Run(tmp_path / "run", text), 2)) == [1, -signal.SIGKILL]
    told = (tmp_path / "0.log").read_text()
    assert "Traceback" not in told
    assert told.splitlines()[-1].startswith("error: ")
