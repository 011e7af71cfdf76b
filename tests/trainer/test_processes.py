"""Signals and sudden death, in processes of their own: what is resumed ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from morphing_trainer.checkpoint.store import checkpoints
from tests.support import same
from tests.trainer.common import entry
from tests.trainer.program import Job, complete, finish, killed_repeatedly, start, wait_until

SCHEDULE = [
    entry("freeze_layer", "wpe", 5),
    entry("stack_layers", 2, 6),
    entry("set_batch_size", 6, 3),
    entry("change_lr", 0.7, 4),
    entry("widen_mlp", 2, 7),
    entry("set_grad_accum", 3, 6),
    entry("unfreeze_layer", "wpe", 8),
]
OPTIONS = {"max_steps": 20, "gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine", "save_strategy": "steps"}


def job(folder: Path, **changes: object) -> Job:
    options = {**OPTIONS, **changes.pop("options", {})}  # type: ignore[dict-item]
    return Job(folder, SCHEDULE, dropout=0.1, options=options, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=lambda signum: signum.name)
def test_a_signal_saves_and_ends_the_run(tmp_path: Path, signum: signal.Signals) -> None:
    """It comes in the middle of step 8, after dropout has drawn for it."""
    whole = start(job(tmp_path / "whole"))
    stopped = job(tmp_path / "stopped", signals=[(0, 8, signum)])
    assert finish(start(stopped)) == [128 + signum]
    assert [path.name for path in checkpoints(stopped.folder)] == ["checkpoint-8"]
    complete(job(tmp_path / "stopped", resume=True))
    assert finish(whole) == [0]
    assert same(stopped.weights(), job(tmp_path / "whole").weights())
    assert stopped.losses() == job(tmp_path / "whole").losses()


@pytest.mark.parametrize("ignoring", [False, True], ids=["foreground", "background"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=lambda signum: signum.name)
def test_a_second_signal_ends_it_at_once(tmp_path: Path, signum: signal.Signals, ignoring: bool) -> None:
    stopped = job(tmp_path / "stopped", signals=[(0, 8, signum), (0, 8, signum)], ignoring=ignoring)
    # Uncaught, SIGINT is a KeyboardInterrupt, with which Python leaves by code 1 here.
    assert finish(start(stopped)) == [1 if signum == signal.SIGINT else -signum]
    assert checkpoints(stopped.folder) == []


def test_a_signal_from_outside(tmp_path: Path) -> None:
    stopped = job(tmp_path / "stopped", pause=0.05)
    (process,) = start(stopped)
    wait_until(stopped.begun.exists)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    assert finish([process]) == [143]
    assert len(checkpoints(stopped.folder)) == 1


def test_killed_ten_times(tmp_path: Path) -> None:
    """SIGKILL at ten moments, in steps, saves and morphs; each time resumed by `True`. The end is the same bits."""
    options = {"max_steps": 90, "save_steps": 2, "save_total_limit": 2}
    whole = job(tmp_path / "whole", options=options)
    reference = start(whole)
    killed = job(tmp_path / "killed", options=options, resume="if possible", pause=0.02)
    moments = random.Random(3)
    reached = killed_repeatedly(killed, [moments.uniform(0.0, 0.4) for _ in range(10)])
    assert reached == sorted(reached)
    assert 0 < reached[-1] < 90
    complete(killed)
    assert finish(reference) == [0]
    assert same(killed.weights(), whole.weights())
    assert killed.losses()[-20:] == whole.losses()[-20:]
    left, right = (run.folder / "checkpoint-90" for run in (killed, whole))
    assert same(load_file(left / "model.safetensors"), load_file(right / "model.safetensors"))
    for name in ("optimizer.pt", "scheduler.pt"):
        ours, theirs = (torch.load(path / name, weights_only=True) for path in (left, right))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
