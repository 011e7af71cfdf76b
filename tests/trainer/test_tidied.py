"""A run that was killed between a save and the deletion of what it replaces deletes that when it is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from morphing_trainer import MorphingTrainer
from morphing_trainer.checkpoint.store import checkpoints
from morphing_trainer.layers import saving
from tests.support import same, trainer, weights
from tests.trainer.common import entry
from tests.trainer.program import Job, complete

RUN: dict[str, Any] = {"max_steps": 8, "save_strategy": "steps", "save_steps": 1, "eval_steps": 1}


class Killed(BaseException):
    """As sudden as an exception can be."""


class Dies(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Killed


class Looks(TrainerCallback):
    """Which checkpoints there are when a resumed run begins its first step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: list[str] | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.found = self.found or names(self.folder)


def names(folder: Path) -> list[str]:
    return [path.name.removeprefix("checkpoint-") for path in checkpoints(folder)]


def run(folder: Path, resume: Any = None, schedule: Any = (), **changes: Any) -> MorphingTrainer:
    made = trainer(folder, list(schedule), **{**RUN, **changes})
    made.train(resume)
    return made


def killed(folder: Path, step: int, schedule: Any = (), **changes: Any) -> None:
    """A run that has deleted nothing."""
    with pytest.raises(Killed):
        run(folder, schedule=schedule, callbacks=[Dies(step)], save_total_limit=100, **changes)


def seen(folder: Path, resume: Any = True, schedule: Any = (), **changes: Any) -> list[str] | None:
    looks = Looks(folder)
    options = {"save_total_limit": 2, "save_steps": 100, "callbacks": [looks], **changes}
    run(folder, resume, schedule, **options)
    return looks.found


def test_killed_right_before_the_deletion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole", save_total_limit=2)

    def dies(run: Path, *args: Any) -> None:
        if "4" in names(run):
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(saving, "prune", dies)
        with pytest.raises(Killed):
            run(tmp_path / "run", save_total_limit=2)
    assert names(tmp_path / "run") == ["4", "3", "2", "1"]
    looks = Looks(tmp_path / "run")
    made = run(tmp_path / "run", True, save_total_limit=2, callbacks=[looks])
    assert looks.found == ["4", "3"]
    assert names(tmp_path / "run") == ["8", "7"] and same(weights(made), weights(whole))


def test_as_many_as_the_limit_says(tmp_path: Path) -> None:
    killed(tmp_path, 5)
    assert seen(tmp_path, save_total_limit=4) == ["5", "4", "3", "2"]


def test_without_a_limit_everything_stays(tmp_path: Path) -> None:
    killed(tmp_path, 5)
    assert seen(tmp_path, save_total_limit=None) == ["5", "4", "3", "2", "1"]


def test_what_was_passed_over_does_not_count(tmp_path: Path) -> None:
    """The newest is damaged, so two sound ones are kept beside it."""
    killed(tmp_path, 5)
    (tmp_path / "checkpoint-5" / "optimizer.pt").write_bytes(b"")
    assert seen(tmp_path) == ["5", "4", "3"]


def test_what_lies_behind_stays(tmp_path: Path) -> None:
    """Resumed from an earlier one by name: of the later ones nobody has said that they may go."""
    killed(tmp_path, 5)
    assert seen(tmp_path, str(tmp_path / "checkpoint-3")) == ["5", "4", "3", "2"]


def test_what_a_guard_may_lead_back_to_stays(tmp_path: Path) -> None:
    schedule = [entry("change_lr", 0.5, 2, guard={"max_loss_increase": 100.0, "within_steps": 5})]
    options = {"eval_steps": 100}
    killed(tmp_path, 6, schedule, **options)
    assert seen(tmp_path, schedule=schedule, **options) == ["6", "5", "2"]


def test_the_best_stays(tmp_path: Path) -> None:
    """The loss only rises, so the first is the best."""
    options = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    options |= {"save_steps": 1}
    killed(tmp_path, 5, **options)
    assert seen(tmp_path, **options) == ["5", "4", "1"]


def test_another_folder_is_left_alone(tmp_path: Path) -> None:
    killed(tmp_path / "old", 4)
    assert seen(tmp_path / "new", str(tmp_path / "old" / "checkpoint-4")) == []
    assert names(tmp_path / "old") == ["4", "3", "2", "1"]


def test_two_ranks(tmp_path: Path) -> None:
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2}
    job = Job(tmp_path / "run", [], options={**options, "save_total_limit": 100})
    complete(job, 2)
    complete(Job(job.folder, [], resume=True, options={**options, "max_steps": 4, "save_total_limit": 2}), 2)
    assert names(job.folder) == ["4", "3"]
