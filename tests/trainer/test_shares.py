"""An operation at a share of the run: the same file for runs of any length, resumed to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import same, trainer, weights
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
