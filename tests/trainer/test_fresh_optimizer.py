"""Going on with a new optimizer, the warm-up after it, and runs that begin where there is nothing to go on with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from morphing_trainer import MorphingTrainer
from morphing_trainer.errors import CheckpointError, ConfigError
from morphing_trainer.run.journal import read_journal
from tests.support import losses, same, tiny_model, trainer, weights
from tests.trainer.common import applied, entry, evaluations, optimizer_state, rates

SCHEDULE = [entry("change_lr", 0.5, 2), entry("stack_layers", 2, 2), entry("widen_mlp", 2, 4)]
OPTIONS = {
    "max_steps": 12,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 20,
    "eval_steps": 3,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> MorphingTrainer:
    run = trainer(tmp_path_factory.mktemp("whole"), SCHEDULE, **OPTIONS)
    run.train()
    return run


def resumed(whole: MorphingTrainer, folder: Path, step: int, **changes: Any) -> MorphingTrainer:
    run = trainer(folder, changes.pop("schedule", SCHEDULE), **{**OPTIONS, **changes})
    run.train(str(whole.run_folder / f"checkpoint-{step}"))
    return run


def overrides(run: MorphingTrainer) -> dict[str, Any]:
    events = read_journal(run.run_folder / "journal.jsonl")
    return {line["name"]: (line["before"], line["now"]) for line in events if line["event"] == "override"}


def test_a_new_optimizer_has_no_memory_and_all_else_stays(whole: MorphingTrainer, tmp_path: Path) -> None:
    run = resumed(whole, tmp_path, 6, ignore_optimizer=True, max_steps=7)
    assert overrides(run) == {"max_steps": (12, 7), "ignore_optimizer": (False, True)}
    steps = [value for name, value in optimizer_state(run).items() if name.endswith(": step")]
    assert {float(step) for step in steps} == {1.0}
    usual = resumed(whole, tmp_path / "usual", 6)
    assert max(float(v) for n, v in optimizer_state(usual).items() if n.endswith(": step")) == 12.0
    assert overrides(usual) == {}
    again = resumed(whole, tmp_path / "again", 6, ignore_optimizer=True)
    assert rates(again) == rates(whole), "the rate knows the executed operations"
    assert applied(again) == applied(whole)
    assert losses(again)[:7] == losses(whole)[:7], "step 7 is computed from the checkpoint's weights"
    assert losses(again)[7:] != losses(whole)[7:]


def test_it_goes_on_exactly(whole: MorphingTrainer, tmp_path: Path) -> None:
    """A run that has begun with a new optimizer is resumed as any other."""
    changes = {"optimizer_warmup_steps": 4}
    afresh = resumed(whole, tmp_path / "afresh", 5, ignore_optimizer=True, **changes)
    for step in (6, 8, 10):
        run = resumed(afresh, tmp_path / str(step), step, **changes)
        assert same(weights(run), weights(afresh)), step
        assert same(optimizer_state(run), optimizer_state(afresh)), step
        assert rates(run) == rates(afresh), step


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": "sgd"}, {"optimizer": "adam", "weight_decay": 0.2}, {"optimizer": "rmsprop"}, {"adam_beta1": 0.5}],
)
def test_it_may_be_of_another_kind(whole: MorphingTrainer, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=rf"{next(iter(changes))} \(was .*must stay as it was"):
        resumed(whole, tmp_path / "kept", 6, **changes)
    run = resumed(whole, tmp_path / "new", 6, ignore_optimizer=True, **changes)
    kind = changes.get("optimizer", "adamw")
    assert type(run.optimizer.optimizer).__name__.lower() == kind
    assert rates(run) == rates(whole)
    assert changes.keys() < overrides(run).keys()


def test_rates_that_follow_the_loss_stay(tmp_path: Path) -> None:
    """The scheduler's state is loaded, and the rate that it had come to."""
    kwargs = {"patience": 0, "factor": 0.5, "threshold": 0.5, "eps": 0.0}
    changes = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": kwargs, "learning_rate": 1e-9}
    whole = trainer(tmp_path / "whole", [], **{**OPTIONS, "warmup_steps": 0, "eval_steps": 1, **changes})
    whole.train()
    assert rates(whole)[7] < 1e-9
    run = resumed(
        whole, tmp_path / "run", 6, schedule=[], ignore_optimizer=True, warmup_steps=0, eval_steps=1, **changes
    )
    assert rates(run)[6] == rates(whole)[6]


def test_with_a_new_rate(whole: MorphingTrainer, tmp_path: Path) -> None:
    run = resumed(whole, tmp_path, 6, ignore_optimizer=True, learning_rate=3e-2)
    assert rates(run)[6:] == pytest.approx([3 * rate for rate in rates(whole)[6:]], rel=1e-9)


# ---- Warm-up -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"optimizer_warmup_steps": 4}, {"optimizer_warmup_fraction": 1 / 3}])
def test_the_rate_rises_on_top_of_the_schedule(whole: MorphingTrainer, tmp_path: Path, given: dict[str, Any]) -> None:
    run = resumed(whole, tmp_path / "run", 5, ignore_optimizer=True, **given)
    ramp = [1.0] * 5 + [0.0, 0.25, 0.5, 0.75] + [1.0] * 3
    assert rates(run) == pytest.approx(
        [rate * factor for rate, factor in zip(rates(whole), ramp, strict=True)], rel=1e-9
    )
    assert rates(run)[6] > 0


def test_at_the_start_of_a_run(tmp_path: Path) -> None:
    """Through operations on the rate and restarts of the schedule; a resume in the middle goes on with it."""
    schedule = [entry("change_lr", 0.5, 1), entry("reset_lr_schedule", None, 2), entry("widen_mlp", 2, 1)]
    plain = trainer(tmp_path / "plain", schedule, **OPTIONS)
    plain.train()
    options = {**OPTIONS, "optimizer_warmup_steps": 8}
    run = trainer(tmp_path / "run", schedule, **options)
    run.train()
    expected = [rate * min(1.0, step / 8) for step, rate in enumerate(rates(plain))]
    assert rates(run) == pytest.approx(expected, rel=1e-9)
    for step in (2, 3, 5):
        again = trainer(tmp_path / str(step), schedule, **options)
        again.train(str(tmp_path / "run" / f"checkpoint-{step}"))
        assert rates(again) == rates(run)
        assert same(weights(again), weights(run)), step


def test_it_softens_the_first_steps_of_a_loaded_model(tmp_path: Path) -> None:
    first = trainer(tmp_path / "first", [], max_steps=60, learning_rate=3e-3)
    first.train()
    options = {"learning_rate": 3e-2, "lr_scheduler_type": "constant", "max_steps": 6, "eval_steps": 1}
    hard = trainer(tmp_path / "hard", [], first.model, **options)
    soft = trainer(tmp_path / "soft", [], first.model, optimizer_warmup_steps=6, **options)
    hard.train()
    soft.train()
    assert max(loss for _, loss in evaluations(soft)) < max(loss for _, loss in evaluations(hard))


def test_its_length_must_stay(whole: MorphingTrainer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"optimizer_warmup_steps \(was 0, is 3\) must stay as it was"):
        resumed(whole, tmp_path, 6, optimizer_warmup_steps=3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer_warmup_steps": 3, "optimizer_warmup_fraction": 0.1}, "stands beside optimizer_warmup_fraction"),
        ({"optimizer_warmup_steps": -1}, "optimizer_warmup_steps: must be at least 0"),
        ({"optimizer_warmup_fraction": 1.5}, "optimizer_warmup_fraction: must be at most 1"),
        ({"optimizer_warmup_steps": 3, "lr_scheduler_type": "reduce_lr_on_plateau"}, "sets the rate by the loss"),
    ],
)
def test_bad_warmups(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, [], **given)


def test_a_scheduler_of_ones_own_is_not_joined(tmp_path: Path) -> None:
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    with pytest.raises(ConfigError, match="cannot be joined with optimizer_warmup_steps"):
        trainer(tmp_path, [], model, optimizers=(optimizer, scheduler), optimizer_warmup_steps=3)


# ---- Resume if possible --------------------------------------------------------------------------------------------


def test_auto_begins_and_goes_on(whole: MorphingTrainer, tmp_path: Path) -> None:
    first = trainer(tmp_path, SCHEDULE, **OPTIONS)
    first.train("auto")
    assert same(weights(first), weights(whole)), "nothing was there: a fresh start"
    for name in ("7", "8", "9", "10", "11", "12"):
        shutil.rmtree(tmp_path / f"checkpoint-{name}")
    second = trainer(tmp_path, SCHEDULE, **OPTIONS)
    second.train("auto")
    assert same(weights(second), weights(whole))
    events = [line["event"] for line in read_journal(tmp_path / "journal.jsonl")]
    assert events.count("start") == events.count("resume") == 1


def test_auto_begins_again_what_came_to_no_checkpoint(tmp_path: Path) -> None:
    options = {**OPTIONS, "save_strategy": "no"}
    trainer(tmp_path, SCHEDULE, **options).train()
    with pytest.raises(ConfigError, match="holds another run"):
        trainer(tmp_path, SCHEDULE, **options).train()
    trainer(tmp_path, SCHEDULE, **options).train("auto")
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match="holds another run"):
        trainer(tmp_path, SCHEDULE, **options).train("auto")


def test_auto_does_not_begin_over_damaged_checkpoints(whole: MorphingTrainer, tmp_path: Path) -> None:
    shutil.copytree(whole.run_folder / "checkpoint-5", tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-5" / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match="all its checkpoints are damaged"):
        trainer(tmp_path, SCHEDULE, **OPTIONS).train("auto")
    assert (tmp_path / "checkpoint-5" / "model.safetensors").exists()


def test_auto_leaves_a_strange_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match="no run of this library has left there"):
        trainer(tmp_path, SCHEDULE, **OPTIONS).train("auto")
