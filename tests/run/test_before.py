"""The state that an open guard may lead back to: where it is, and that nobody goes on without it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from morphing_trainer.checkpoint.store import checkpoints
from morphing_trainer.errors import CheckpointError
from tests.trainer.test_guarded import SWEEP, Dies, Killed, assert_same_run, make, run


def test_it_is_brought_to_another_folder(tmp_path: Path) -> None:
    """The run is killed there while the guard is open, and the folder of before is gone."""
    with pytest.raises(Killed):
        run(tmp_path / "old", SWEEP, callbacks=[Dies(7)])
    shutil.copytree(tmp_path / "old", tmp_path / "kept")
    with pytest.raises(Killed):
        run(tmp_path / "new", SWEEP, str(tmp_path / "old" / "checkpoint-7"), callbacks=[Dies(1)])
    shutil.rmtree(tmp_path / "old")
    assert [path.name for path in checkpoints(tmp_path / "new")] == ["checkpoint-8", "checkpoint-5"]
    assert_same_run(run(tmp_path / "new", SWEEP, True), run(tmp_path / "kept", SWEEP, True))


def test_an_open_guard_needs_its_optimizer(tmp_path: Path) -> None:
    """Another one's memory could not be put back."""
    with pytest.raises(Killed):
        run(tmp_path, SWEEP, callbacks=[Dies(7)])
    with pytest.raises(CheckpointError, match=r"guarded to step 9, and the run could not go back with another optim"):
        make(tmp_path, SWEEP, ignore_optimizer=True).train(str(tmp_path / "checkpoint-7"))
