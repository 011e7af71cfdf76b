"""Processes that begin warm: forked from one that has trained before, so that a whole run takes a fifth of a second."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from morphing_trainer.reporting import plots
from tests.support import tiny_model, trainer
from tests.trainer.common import entry
from tests.trainer.program import server


def _nothing(*args: Any) -> None:
    pass


def _warm_up() -> None:
    """Import what a run imports late, and keep the collector from looking through it at every morph."""
    torch.set_num_threads(1)
    # tqdm's own lock is one for all forked processes: a child that is killed with it lets none of the others go on.
    tqdm.set_lock(threading.RLock())
    plots.plot_losses = _nothing  # type: ignore[assignment]  # drawing takes longer than a run, and has tests of its own
    with tempfile.TemporaryDirectory() as folder:
        options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "eval_steps": 1, "disable_tqdm": True}
        trainer(Path(folder) / "run", [entry("stack_layers", 2, 1)], tiny_model(), **options).train()
    gc.collect()
    gc.freeze()


def _child(work: Callable[..., None], arguments: tuple[Any, ...], log: Path) -> NoReturn:
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        for signum, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            signal.signal(signum, default)  # however the tests were started
        work(*arguments)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _nurse(pipe: Connection) -> None:
    """In the warm process: start children and wait for them, as told through the pipe."""
    _warm_up()
    pipe.send("warm")
    while True:
        try:
            order, *rest = pipe.recv()
        except EOFError:
            return
        if order == "start":
            pid = os.fork()
            if pid == 0:
                _child(*rest)
            pipe.send(pid)
            continue
        pid, end = rest[0], time.monotonic() + rest[1]
        while not (found := os.waitpid(pid, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                break
            time.sleep(0.002)
        pipe.send(os.waitstatus_to_exitcode(found[1]) if found[0] else None)


@dataclass(frozen=True)
class Child:
    """A process that was started; its output is in `log`."""

    nursery: Nursery
    pid: int
    log: Path

    def send(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def code(self, seconds: float = 60) -> int | None:
        """Its exit code when it ends, minus the number of the signal that ended it; None if it had to be killed."""
        found: int | None = self.nursery.ask("wait", self.pid, seconds)
        return found


class Nursery:
    """Starts functions of modules, with arguments that can be sent, in warm processes."""

    def __init__(self) -> None:
        self._pipe, theirs = Pipe()
        self._process = server().Process(target=_nurse, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        assert self._pipe.recv() == "warm"

    def ask(self, *order: Any) -> Any:
        self._pipe.send(order)
        return self._pipe.recv()

    def start(self, work: Callable[..., None], *arguments: Any, log: Path) -> Child:
        return Child(self, self.ask("start", work, arguments, log), log)

    def close(self) -> None:
        self._pipe.close()
        self._process.join(10)
