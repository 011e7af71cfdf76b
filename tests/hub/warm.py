"""Processes that use a Hub at an address of their own: forked from one that has imported everything with it.

The Hub's client reads its address when it is imported, so the tests' own process cannot be told of another.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]


def environment(url: str, home: Path) -> dict[str, str]:
    """Of a process that uses the Hub at `url` and nothing else of the network, and knows no token."""
    names = ("HF_", "HUGGING", "TRANSFORMERS_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(names) and "proxy" not in k.lower()}
    return {
        **kept,
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_CACHE": str(home / "datasets"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(ROOT),
    }


@dataclass(frozen=True)
class Done:
    """A process that has ended: its exit code (None: it had to be killed), and all that it has written."""

    code: int | None
    said: str


class Warm:
    """Runs functions of modules in fresh processes, in milliseconds each."""

    def __init__(self, url: str, home: Path) -> None:
        self._home, self._number = home, 0
        home.mkdir(parents=True, exist_ok=True)
        self._pipe, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hub.warm", str(theirs.fileno())],
            env=environment(url, home),
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()

    def start(self, work: Callable[..., None], *arguments: Any, **variables: str | None) -> Callable[[float], Done]:
        """Begin; what is returned waits for the end, so many seconds at most.

        Args:
            variables: of the environment; None is not set.
        """
        self._number += 1
        log = self._home / f"{self._number}.log"
        self._pipe.send(("start", work, arguments, variables, log))
        pid = self._pipe.recv()

        def wait(seconds: float = 60.0) -> Done:
            self._pipe.send(("wait", pid, seconds))
            return Done(self._pipe.recv(), log.read_text(errors="replace"))

        return wait

    def run(self, work: Callable[..., None], *arguments: Any, **variables: str | None) -> Done:
        """Run to the end."""
        return self.start(work, *arguments, **variables)(60.0)

    def close(self) -> None:
        self._pipe.close()
        self._process.wait(10)


def _child(work: Callable[..., None], arguments: Any, variables: Mapping[str, str | None], log: Path) -> NoReturn:
    code = 1
    try:
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        work(*arguments)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _nothing(*args: Any, **options: Any) -> None:
    pass


def _warm_up() -> None:
    """Do once what the children do, so that none has to import, compile and find the same again."""
    from morphing_trainer import LoraArguments
    from tests.hub.program import Run, load, load_as_anybody, train

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "run"
        schedule = [{"name": "stack_layers", "value": 2, "max_wait_iters": 1}]
        train(Run(path, schedule, {"push_to_hub": False, "max_steps": 2}, lora=LoraArguments(lora_r=2)))
        load_as_anybody(Path(folder) / "a.json", str(path / "model"))
        load(Path(folder) / "b.json", str(path / "model"))


def main(descriptor: int) -> None:
    import torch
    from tqdm import tqdm

    import tests.hub.program  # noqa: F401
    from morphing_trainer.reporting import plots
    from morphing_trainer.run import reports

    # Drawing takes longer than a run of these, and has tests of its own.
    plots.plot_losses = reports.write_report = _nothing  # type: ignore

    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is one for all forked processes: one that is killed with it stops all
    _warm_up()
    gc.collect()
    gc.freeze()
    pipe: Connection[Any, Any] = Connection(descriptor)
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
                os.kill(pid, 9)
                os.waitpid(pid, 0)
                break
            time.sleep(0.005)
        pipe.send(os.waitstatus_to_exitcode(found[1]) if found[0] else None)


if __name__ == "__main__":
    main(int(sys.argv[1]))
