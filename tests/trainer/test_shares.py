"""An operation at a share of the run: the same file for runs of any length, resumed to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from morphing_trainer.run.course import TrainingStage
from morphing_trainer.run.length import Length
from tests.support import Tokens, same, trainer, weights
from tests.trainer.common import applied, entry

SCHEDULE = [entry("stack_layers", 2, when={"at_share": 0.7})]


@pytest.mark.parametrize(("options", "step"), [({"max_steps": 10}, 7), ({"max_steps": -1, "num_train_epochs": 1}, 18)])
def test_runs_of_any_length(tmp_path: Path, options: dict[str, int], step: int) -> None:
    run = trainer(tmp_path, SCHEDULE, **options)  # 101 samples in batches of 4 are 26 steps
    run.train()
    assert applied(run) == [("stack_layers", step)]


def test_a_resumed_run_grows_at_the_same_step(tmp_path: Path) -> None:
    options = {"max_steps": 10, "save_strategy": "steps", "save_steps": 4}
    through = trainer(tmp_path, SCHEDULE, **options)
    through.train()
    resumed = trainer(tmp_path, SCHEDULE, **options)
    resumed.train(str(tmp_path / "checkpoint-4"))
    assert same(weights(resumed), weights(through))


def test_a_longer_run_grows_later(tmp_path: Path) -> None:
    trainer(tmp_path, SCHEDULE, max_steps=8, save_strategy="steps", save_steps=4).train()
    longer = trainer(tmp_path, SCHEDULE, max_steps=20)
    longer.train(str(tmp_path / "checkpoint-4"))
    assert applied(longer) == [("stack_layers", 14)]


def due(share: float, **beside: Any) -> dict[str, Any]:
    """A condition, or several under `all`."""
    parts = [{"at_share": share}, *({name: value} for name, value in beside.items())]
    return {"all": parts} if beside else parts[0]


@pytest.mark.parametrize(
    ("when", "step"),
    [
        ({"any": [{"at_share": 0.5}, {"waited": 9}]}, 5),
        ({"any": [{"at_share": 0.5}, {"waited": 3}]}, 3),
        ({"all": [{"at_share": 0.5}, {"waited": 7}]}, 7),
        ({"all": [{"at_share": 0.5}, {"waited": 3}]}, 5),
        ({"all": [{"at_share": 0.5}, {"any": [{"at_share": 0.8}, {"loss_below": float("inf")}]}]}, 6),
        ({"any": [{"at_share": 0.8}, {"at_share": 0.4}]}, 4),
    ],
    ids=str,
)
def test_beside_other_conditions(tmp_path: Path, when: dict[str, Any], step: int) -> None:
    run = trainer(tmp_path, [entry("stack_layers", 2, when=when)], max_steps=10, eval_steps=3)
    run.train()
    assert applied(run) == [("stack_layers", step)]


@pytest.mark.parametrize(
    ("repeat", "when", "steps"),
    [
        (3, due(0.5), [5, 6, 7]),  # it holds from there on
        ("end", due(0.7), [7, 8, 9]),
        ("end", due(0.5, waited=2), [5, 7, 9]),
    ],
    ids=str,
)
def test_repeats(tmp_path: Path, repeat: Any, when: dict[str, Any], steps: list[int]) -> None:
    run = trainer(tmp_path, [entry("change_lr", 0.9, when=when, repeat=repeat)], max_steps=10)
    run.train()
    assert applied(run) == [("change_lr", step) for step in steps]


def test_a_group_that_repeats(tmp_path: Path) -> None:
    group = [entry("change_lr", 0.9, when=due(0.5, waited=1)), entry("widen_mlp", 1.25, 2, noise=0.1)]
    options = {"max_steps": 10, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 20}
    through = trainer(tmp_path, [{"repeat": 2, "operations": group}], **options)
    through.train()
    assert applied(through) == [("change_lr", 5), ("widen_mlp", 7), ("change_lr", 8)]  # and at step 10 the run is over
    for step in (5, 7, 8):
        resumed = trainer(tmp_path / str(step), [{"repeat": 2, "operations": group}], **options)
        resumed.train(str(tmp_path / f"checkpoint-{step}"))
        assert same(weights(resumed), weights(through)), step


def staged(first: int = 6, second: int = 4) -> list[TrainingStage]:
    lengths = {"first": first, "second": second}
    return [TrainingStage(name, Tokens(40), Tokens(8), Length("steps", steps)) for name, steps in lengths.items()]


@pytest.mark.parametrize(
    ("stage", "then", "step"),
    [
        ("second", {"at_share": 0.8}, 8),  # of the run; 80 % of the stage would be step 9
        ("second", {"at_share": 0.3}, 6),  # where the stage begins, at 60 % of the run
        ("first", {"at_share": 0.3}, 3),
        ("first", {"at_share": 0.8}, 8),  # in the second stage: the first has been reached there, too
        ("second", {"any": [{"at_share": 0.9}, {"waited": 1}]}, 7),
        ("second", {"all": [{"at_share": 0.7}, {"waited": 2}]}, 8),
    ],
)
def test_in_a_stage_it_is_the_share_of_the_whole_run(
    tmp_path: Path, stage: str, then: dict[str, Any], step: int
) -> None:
    schedule = [entry("stack_layers", 2, when={"stage": {"name": stage, "then": then}})]
    run = trainer(tmp_path, schedule, stages=staged())
    run.train()
    assert run.state.global_step == 10
    assert applied(run) == [("stack_layers", step)]


def test_a_stage_that_ends_sooner_moves_it(tmp_path: Path) -> None:
    """Of 6 + 10 steps the half is 8; once the first stage has ended at step 2, the half of 12 is 6."""
    schedule = [entry("advance_stage", None, 2), entry("stack_layers", 2, when=due(0.5))]
    run = trainer(tmp_path, schedule, stages=staged(6, 10))
    run.train()
    assert applied(run) == [("advance_stage", 2), ("stack_layers", 6)]


def test_a_larger_batch_moves_it(tmp_path: Path) -> None:
    """13 of 26 steps read 52 of the 101 samples; the others are 7 steps of up to 8, so the run has 20."""
    schedule = [entry("set_batch_size", 8, when=due(0.5)), entry("stack_layers", 2, when=due(0.8))]
    run = trainer(tmp_path, schedule, max_steps=-1, num_train_epochs=1)
    run.train()
    assert run.state.global_step == 20
    assert applied(run) == [("set_batch_size", 13), ("stack_layers", 16)]
