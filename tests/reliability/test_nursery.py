"""What one of the warm processes does, the others do not feel."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from tqdm import tqdm

from tests.reliability.nursery import Nursery


def held(told: Path) -> None:
    tqdm.get_lock().acquire()
    told.touch()
    signal.pause()


def taken() -> None:
    with tqdm.get_lock():
        pass


def test_one_that_is_killed_while_it_draws_a_progress_bar(nursery: Nursery, tmp_path: Path) -> None:
    told = tmp_path / "told"
    child = nursery.start(held, told, log=tmp_path / "held.log")
    while not told.exists():
        time.sleep(0.01)
    child.send(signal.SIGKILL)
    assert child.code() == -signal.SIGKILL
    assert nursery.start(taken, log=tmp_path / "taken.log").code(10) == 0
