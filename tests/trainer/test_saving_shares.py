"""Checkpoints of a sharded model (FSDP2), which all processes write beside the training (`async_save`)."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from morphing_trainer.checkpoint import verify
from morphing_trainer.checkpoint.store import STAGING
from morphing_trainer.run.bundle import REQUIRED
from tests.support import same, tiny_model
from tests.trainer.common import entry
from tests.trainer.program import Job, complete, finish, start, wait_until
from tests.trainer.test_saving_beside import OPTIONS, SCHEDULE, names

ALL = ["checkpoint-16", "checkpoint-12", "checkpoint-8", "checkpoint-4"]
NO_ROOM = "no room for a copy of the run's state"


def job(folder: Path, **changes: Any) -> Job:
    options = {**OPTIONS, "async_save": True, **changes.pop("options", {})}
    return Job(folder, changes.pop("schedule", SCHEDULE), dropout=0.1, sharded=True, options=options, **changes)


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """One that waits for its checkpoints."""
    return complete(job(tmp_path_factory.mktemp("waiting") / "run", options={"async_save": False}), 2)


def said(run: Job) -> list[str]:
    return [(run.results / f"{rank}.log").read_text() for rank in range(2)]


def assert_same_files(left: Path, right: Path) -> None:
    """As far as two runs can have them: without times, names of folders, and the order of a header's entries."""
    ours, theirs = ({path.relative_to(each) for path in each.rglob("*")} for each in (left, right))
    assert ours == theirs
    tensors = {path for path in ours if path.suffix == ".safetensors"}
    assert {path.name for path in tensors} == {
        "model.safetensors",
        "shard-00001-model-00001-of-00001.safetensors",
        "shard-00002-model-00001-of-00001.safetensors",
    }
    for path in tensors:
        assert same(load_file(left / path), load_file(right / path))
    for name in ("optimizer.pt", "scheduler.pt"):
        (found, expected) = (torch.load(each / name, weights_only=True) for each in (left, right))
        assert str(found) == str(expected)
    for name in ("rng_state_0.pth", "rng_state_1.pth", "config.json"):
        assert (left / name).read_bytes() == (right / name).read_bytes()


def test_the_checkpoints_of_a_run_that_waits(tmp_path: Path, waiting: Job) -> None:
    """To the bit; and one of them resumes to the same end."""
    run = complete(job(tmp_path / "run"), 2)
    assert names(run.folder) == names(waiting.folder) == ALL
    assert same(run.weights(), waiting.weights())
    assert run.losses(0) == run.losses(1) == waiting.losses()
    for name in ALL:
        verify(run.folder / name, (*REQUIRED, "rng_state_0.pth", "rng_state_1.pth"))
        assert_same_files(run.folder / name, waiting.folder / name)
    complete(job(tmp_path / "run", resume=str(run.folder / "checkpoint-8")), 2)
    assert same(run.weights(0), waiting.weights(0))
    assert same(run.weights(1), waiting.weights(1))


@pytest.mark.parametrize("rank", [0, 1])
def test_training_does_not_wait_for_the_disk(rank: int, tmp_path: Path, waiting: Job) -> None:
    """One process writes its rows of step 8 when step 10 has been trained; they are those of step 8."""
    run = complete(job(tmp_path / "run", fails=(rank, "slow share")), 2)
    assert names(run.folder) == ALL
    assert same(run.weights(), waiting.weights())
    assert_same_files(run.folder / "checkpoint-8", waiting.folder / "checkpoint-8")


def test_training_does_not_wait_for_the_last_round(tmp_path: Path) -> None:
    """Two steps are trained while a checkpoint is published; each ends an epoch, which looks at the write once more."""
    options = {"save_steps": 8, "max_steps": 16}
    found = job(tmp_path / "run", schedule=[], samples=16, pause=0.1, fails=(0, "slow publish"), options=options)
    run = complete(found, 2)
    assert names(run.folder) == ["checkpoint-16", "checkpoint-8"]


@pytest.mark.parametrize("fails", [(0, "share"), (1, "share"), (0, "publish")])
def test_a_process_whose_disk_is_full(fails: tuple[int, str], tmp_path: Path) -> None:
    """All end by the next save, with the reason, and nothing is left of step 8."""
    failing = job(tmp_path / "run", fails=fails)
    codes = finish(start(failing, 2), 60)
    assert None not in codes
    assert 0 not in codes
    logs, rank = said(failing), fails[0]
    assert "StorageError: step 8: the checkpoint could not be saved" in logs[rank]
    assert f"rank {rank} failed, so all ranks stop: StorageError: step 8" in logs[1 - rank]
    assert names(failing.folder) == ["checkpoint-4"]
    assert not any(failing.folder.glob(f"{STAGING}*"))


@pytest.mark.parametrize("fails", [(1, "stuck share"), (0, "stalls")])
def test_killed_while_a_checkpoint_is_being_written(fails: tuple[int, str], tmp_path: Path, waiting: Job) -> None:
    """While one process has not written its rows; while the main process makes a checkpoint of what all have."""
    killed = job(tmp_path / "run", fails=fails)
    processes = start(killed, 2)
    sign = "manifest.json" if fails[1] == "stalls" else "rng_state_1.pth"
    wait_until(lambda: any(killed.folder.glob(f"{STAGING}checkpoint-8-*/{sign}")))
    time.sleep(0.2)
    for process in processes:
        process.kill()
    assert finish(processes) == [-signal.SIGKILL] * 2
    assert names(killed.folder) == ["checkpoint-4"]
    complete(job(tmp_path / "run", resume=True), 2)
    assert names(killed.folder) == ALL
    assert not any(killed.folder.glob(f"{STAGING}*"))
    assert same(killed.weights(), waiting.weights())


def test_what_all_have_written_when_they_fail_together_is_kept(tmp_path: Path) -> None:
    """The ranks draw other numbers right after the save, before any process can hear that the others have written."""
    schedule = [entry("widen_mlp", 2, 6, noise=0.1)]
    failing = job(tmp_path / "run", schedule=schedule, fails=(1, "draw"), options={"save_steps": 6})
    assert finish(start(failing, 2), 60) == [1, 1]
    assert names(failing.folder) == ["checkpoint-6"]
    verify(failing.folder / "checkpoint-6", REQUIRED)


def test_what_not_all_may_have_written_is_left(tmp_path: Path) -> None:
    """One process fails alone in the step after the save: nobody waits for it, and no half of a checkpoint appears."""
    failing = job(tmp_path / "run", fails=(1, "step"), options={"save_steps": 3})
    codes = finish(start(failing, 2), 60)
    assert None not in codes
    assert 0 not in codes
    assert names(failing.folder) == []
    assert all("checkpoint-3 is not there: the run ended before all ranks had written" in log for log in said(failing))


@pytest.mark.parametrize("rank", [0, 1])
def test_all_wait_if_one_process_has_no_room(rank: int, tmp_path: Path) -> None:
    run = complete(job(tmp_path / "run", room=(rank, 0), options={"max_steps": 4}), 2)
    assert names(run.folder) == ["checkpoint-4"]
    assert (NO_ROOM in said(run)[0]) == (rank == 0)  # one warning for each machine


def test_processes_of_one_machine_share_its_room(tmp_path: Path) -> None:
    """The main process copies the weights and its half of two moments of each, and the other one the other half."""
    weights = 4 * sum(weight.numel() for weight in tiny_model().parameters())
    for room, waits in ((2.5, True), (3.5, False)):
        found = job(tmp_path / str(room), schedule=[], room=(0, int(room * weights)), options={"max_steps": 4})
        run = complete(found, 2)
        assert names(run.folder) == ["checkpoint-4"]
        assert (NO_ROOM in said(run)[0]) == waits
