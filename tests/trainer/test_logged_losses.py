"""The training losses of log lines that cover several steps, and of the result, whatever interrupts them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from morphing_trainer import MorphingTrainer
from morphing_trainer.checkpoint import write_manifest
from morphing_trainer.run.bundle import STATE, read_bundle
from morphing_trainer.run.logged import Logged
from morphing_trainer.run.reading import read_run
from tests.support import Tokens, losses, tiny_model, trainer
from tests.trainer.common import DROPOUT, entry
from tests.trainer.program import Job, complete, finish, start, wait_until
from tests.trainer.spoiling import Spoils

RUN: dict[str, Any] = {
    "max_steps": 11,
    "logging_steps": 4,
    "eval_steps": 3,
    "gradient_accumulation_steps": 2,
    "save_total_limit": 100,
    "save_strategy": "steps",
    "save_steps": 1,
    "lr_scheduler_type": "cosine",
}
SCHEDULE = [entry("widen_mlp", 1.5, 3, noise=0.1), entry("set_batch_size", 3, 3)]


def make(folder: Path, schedule: Any = SCHEDULE, **changes: Any) -> MorphingTrainer:
    options = {"data": Tokens(61), **RUN, **changes}
    return trainer(folder, schedule, tiny_model(**DROPOUT), **options)


def run(folder: Path, schedule: Any = SCHEDULE, resume: Any = None, **changes: Any) -> tuple[MorphingTrainer, float]:
    made = make(folder, schedule, **changes)
    output = made.train(resume)
    assert made.state.log_history[-1]["train_loss"] == output.metrics["train_loss"] == output.training_loss
    return made, output.training_loss


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[MorphingTrainer, float]:
    return run(tmp_path_factory.mktemp("whole") / "run")


def logged(made: MorphingTrainer) -> list[tuple[int, Any, Any, Any]]:
    lines = [line for line in made.state.log_history if "loss" in line]
    return [(line["step"], line["loss"], line["grad_norm"], line["learning_rate"]) for line in lines]


@pytest.mark.parametrize("step", range(1, 12))
def test_resumed_within_an_interval(tmp_path: Path, whole: tuple[MorphingTrainer, float], step: int) -> None:
    made, mean = run(tmp_path, resume=str(whole[0].run_folder / f"checkpoint-{step}"))
    assert logged(made) == logged(whole[0])
    assert [line[0] for line in logged(made)] == [4, 8]
    assert mean == whole[1]


def test_the_mean_is_that_of_plain_training(tmp_path: Path) -> None:
    """Of a run that nothing interrupts, `Trainer` itself says the same."""
    options = {"save_strategy": "no", "weight_decay": 0.0}
    ours, mean = run(tmp_path / "ours", [], **options)
    args = make(tmp_path / "plain", [], **options).args
    plain = Trainer(tiny_model(**DROPOUT), args, train_dataset=Tokens(61), eval_dataset=Tokens(20, seed=2))
    found = plain.train()
    assert found.training_loss == mean
    assert [line["loss"] for line in plain.state.log_history if "loss" in line] == losses(ours)


def test_resumed_and_resumed_again(tmp_path: Path, whole: tuple[MorphingTrainer, float]) -> None:
    """The sums go from one life of the run to the next."""
    at = str(whole[0].run_folder / "checkpoint-5")
    for step in (6, 7, 9):
        made = make(tmp_path / f"to-{step}")
        made.add_callback(Ends(step))
        made.train(at)
        at = str(tmp_path / f"to-{step}" / f"checkpoint-{step}")
    made, mean = run(tmp_path / "last", resume=at)
    assert logged(made) == logged(whole[0]) and mean == whole[1]


class Ends(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = control.should_training_stop or state.global_step == self.step


def test_saved_beside_the_training(tmp_path: Path, whole: tuple[MorphingTrainer, float]) -> None:
    beside, mean = run(tmp_path / "beside", async_save=True)
    assert logged(beside) == logged(whole[0]) and mean == whole[1]
    made, mean = run(tmp_path / "again", resume=str(tmp_path / "beside" / "checkpoint-6"))
    assert logged(made) == logged(whole[0]) and mean == whole[1]


@pytest.mark.parametrize("save_steps", [1, 3])
def test_gone_back_from_a_bad_step(tmp_path: Path, save_steps: int) -> None:
    """What `rollback` logs is what `skip` logs."""
    found = [
        run(tmp_path / way, on_nan=way, callbacks=[Spoils([6])], save_steps=save_steps) for way in ("skip", "rollback")
    ]
    assert logged(found[0][0]) == logged(found[1][0]) and found[0][1] == found[1][1]


def test_gone_back_to_before_an_operation(tmp_path: Path) -> None:
    """What a guard undid is in no mean."""
    guarded = entry("change_lr", 100.0, 3, guard={"max_loss_increase": 0.0, "within_steps": 3})
    made, mean = run(tmp_path / "run", [guarded])
    plain, expected = run(tmp_path / "plain", [])
    assert logged(made) == logged(plain) and mean == expected


def test_a_checkpoint_without_the_sums(tmp_path: Path, whole: tuple[MorphingTrainer, float]) -> None:
    """Saved by an older version: the run goes on, and counts from there."""
    old = tmp_path / "checkpoint-6"
    shutil.copytree(whole[0].run_folder / "checkpoint-6", old)
    data = json.loads((old / STATE).read_text())
    del data["state"]["logged"]
    (old / STATE).write_text(json.dumps(data))
    write_manifest(old)
    made, mean = run(tmp_path / "run", resume=str(old))
    assert [line[0] for line in logged(made)] == [4, 8]
    assert logged(made)[0] == logged(whole[0])[0]
    each, _ = run(tmp_path / "each", logging_steps=1)
    assert mean == pytest.approx(sum(losses(each)[6:]) / 5, rel=1e-6)
    assert logged(made)[1][1] == pytest.approx(sum(losses(each)[6:8]) / 2, rel=1e-6)
    assert read_bundle(tmp_path / "run" / "checkpoint-9").state["logged"]["began"] == 6


def test_begun_anew_with_the_statistics(tmp_path: Path, whole: tuple[MorphingTrainer, float]) -> None:
    made, mean = run(tmp_path, resume=str(whole[0].run_folder / "checkpoint-6"), reset_history=True)
    assert [line["step"] for line in made.state.log_history if "loss" in line] == [8]
    assert mean != whole[1]


@pytest.mark.parametrize(
    "harm",
    [
        {"pending": []},
        {"pending": ["x"]},
        {"pending": 3},
        {"at": -1},
        {"began": None},
        {"total": []},
        {"grad_norm": {}},
        {"learning_rate": "high"},
    ],
)
def test_malformed(harm: dict[str, Any]) -> None:
    data = {**Logged((0.5,), 4, 12.0, 0, float("nan"), 1e-3).to_dict(), **harm}
    with pytest.raises((KeyError, TypeError, ValueError)):
        Logged.from_dict(data)


def test_round_trip_and_other_numbers_of_processes() -> None:
    made = Logged((0.1, float("inf"), 0.3), 4, 12.0, 0, None, 1e-3)
    assert Logged.from_dict(json.loads(json.dumps(made.to_dict(), allow_nan=False))) == made
    pair = replace(made, pending=(1.0, 2.0))
    assert [pair.of(rank, 2) for rank in (0, 1)] == [1.0, 2.0]
    assert [pair.of(rank, 4) for rank in range(4)] == [1.5] * 4


def job(folder: Path, **changes: Any) -> Job:
    options = {"max_steps": 7, "logging_steps": 5, "per_device_train_batch_size": 2, "save_strategy": "steps"}
    return Job(
        folder, SCHEDULE[:1], dropout=0.1, options={**options, "save_steps": 1, "save_total_limit": 3}, **changes
    )


def test_every_rank_has_its_own_sum(tmp_path: Path) -> None:
    """Two ranks, killed between two log lines."""
    whole = complete(job(tmp_path / "whole"), 2)
    killed = job(tmp_path / "killed", pause=0.3)
    both = start(killed, 2)
    wait_until(lambda: (killed.folder / "checkpoint-3").is_dir())
    for process in both:
        process.kill()
    finish(both)
    pending = read_bundle(killed.folder / "checkpoint-3").state["logged"]["pending"]
    assert len(pending) == 2 and pending[0] != pending[1]
    complete(replace(killed, resume=True, pause=0.0), 2)
    assert killed.losses() == whole.losses() and len(whole.losses()) == 1
    ends = [
        [line["train_loss"] for line in read_run(each.folder).lines if "train_loss" in line] for each in (killed, whole)
    ]
    assert ends[0] == ends[1] and len(ends[0]) == 1


def test_a_sum_survives_to_the_bit() -> None:
    """A float32 is written as the float64 that it is, and comes back as itself."""
    value = torch.tensor(1.0) / 3
    made = Logged((float(value),), 0, 0.0, 0)
    again = Logged.from_dict(json.loads(json.dumps(made.to_dict())))
    assert torch.equal(torch.zeros(()).fill_(again.of(0, 1)), value)
