"""Checkpoints written beside the training (`async_save`), in processes of their own: signals, sudden death, ranks."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from morphing_trainer.checkpoint import verify
from morphing_trainer.checkpoint.store import STAGING, checkpoints
from morphing_trainer.run.bundle import REQUIRED
from tests.support import same
from tests.trainer.common import entry
from tests.trainer.program import Job, complete, finish, killed_repeatedly, start, wait_until

SCHEDULE = [entry("stack_layers", 2, 6), entry("change_lr", 0.7, 4)]
OPTIONS = {
    "max_steps": 16,
    "gradient_accumulation_steps": 2,  # signals come between the two
    "lr_scheduler_type": "cosine",
    "save_strategy": "steps",
    "save_steps": 4,
}


def job(folder: Path, **changes: object) -> Job:
    options = {**OPTIONS, "async_save": True, **changes.pop("options", {})}  # type: ignore[dict-item]
    return Job(folder, SCHEDULE, dropout=0.1, options=options, **changes)  # type: ignore[arg-type]


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """One that nothing happens to, and that waits for its checkpoints."""
    return complete(job(tmp_path_factory.mktemp("whole") / "run", options={"async_save": False}))


def test_killed_while_a_checkpoint_is_being_written(tmp_path: Path, whole: Job) -> None:
    killed = job(tmp_path / "run", fails=(0, "stalls"))
    (process,) = start(killed)
    wait_until(lambda: any(killed.folder.glob(f"{STAGING}checkpoint-8-*/manifest.json")))
    time.sleep(0.2)
    process.kill()
    assert finish([process]) == [-signal.SIGKILL]
    assert names(killed.folder) == ["checkpoint-4"]
    complete(job(tmp_path / "run", resume=True))
    assert names(killed.folder) == ["checkpoint-16", "checkpoint-12", "checkpoint-8", "checkpoint-4"]
    assert not any(killed.folder.glob(f"{STAGING}*"))
    assert same(killed.weights(), whole.weights())


def test_killed_again_and_again(tmp_path: Path, whole: Job) -> None:
    """At moments that nobody chose, with a checkpoint after every step."""
    killed = job(tmp_path / "run", resume="if possible", pause=0.02, options={"save_steps": 1})
    reached = killed_repeatedly(killed, [0.1, 0.05, 0.15, 0.02])
    assert 0 < reached[-1] < 16
    complete(killed)
    assert same(killed.weights(), whole.weights())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=lambda signum: signum.name)
def test_a_signal_waits_for_the_checkpoints(tmp_path: Path, whole: Job, signum: signal.Signals) -> None:
    stopped = job(tmp_path / "run", signals=[(0, 9, signum)])
    assert finish(start(stopped)) == [128 + signum]
    assert names(stopped.folder) == ["checkpoint-9", "checkpoint-8", "checkpoint-4"]
    complete(job(tmp_path / "run", resume=True))
    assert same(stopped.weights(), whole.weights())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=lambda signum: signum.name)
def test_a_second_signal_does_not_wait(tmp_path: Path, signum: signal.Signals) -> None:
    stopped = job(tmp_path / "run", fails=(0, "stalls"), signals=[(0, 10, signum), (0, 10, signum)])
    assert finish(start(stopped), 60) == [1 if signum == signal.SIGINT else -signum]
    assert names(stopped.folder) == ["checkpoint-4"]


def test_two_ranks(tmp_path: Path) -> None:
    """Rank 0 writes for all; a checkpoint resumes to the same end on both."""
    waiting = complete(job(tmp_path / "waiting", options={"async_save": False}), 2)
    run = complete(job(tmp_path / "run"), 2)
    assert names(run.folder) == ["checkpoint-16", "checkpoint-12", "checkpoint-8", "checkpoint-4"]
    assert same(run.weights(), waiting.weights())
    assert run.losses(1) == waiting.losses(1)
    for name in names(run.folder):
        verify(run.folder / name, (*REQUIRED, "rng_state_0.pth", "rng_state_1.pth"))
        left, right = (load_file(each.folder / name / "model.safetensors") for each in (run, waiting))
        assert same(left, right)
    complete(job(tmp_path / "run", resume=str(run.folder / "checkpoint-8")), 2)
    assert same(run.weights(0), waiting.weights(0))
    assert same(run.weights(1), waiting.weights(1))


def test_two_ranks_hear_of_a_full_disk(tmp_path: Path) -> None:
    """It is full for rank 0 at step 8; both end by the next save, with the reason, and step 4 is there."""
    failing = job(tmp_path / "run", fails=(0, "publish"))
    codes = finish(start(failing, 2), 60)
    assert None not in codes
    assert 0 not in codes
    logs = [(failing.results / f"{rank}.log").read_text() for rank in range(2)]
    assert "StorageError: step 8: the checkpoint could not be saved" in logs[0]
    assert "rank 0 failed, so all ranks stop: StorageError: step 8" in logs[1]
    assert names(failing.folder) == ["checkpoint-4"]
