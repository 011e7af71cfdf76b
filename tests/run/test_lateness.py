"""A run that is too short for its schedule says so, as it begins and as it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from morphing_trainer.run.signals import RunInterrupted
from tests.support import trainer
from tests.trainer.common import StopsAfter, entry
from tests.trainer.test_library import Signalled

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}


def warned(folder: Path) -> list[str]:
    lines = (folder / "logs" / "train.log").read_text().splitlines()
    return [line.partition(" WARNING ")[2] for line in lines if " WARNING " in line]


def left(folder: Path) -> list[str]:
    lines = (folder / "logs" / "train.log").read_text().splitlines()
    return [line.partition("Not applied: ")[2] for line in lines if "Not applied: " in line]


@pytest.mark.parametrize(
    ("schedule", "warnings", "remains"),
    [
        (None, [], []),
        ([entry("set_lr", 1e-3, 4), entry("stack_layers", 2, 7)], [], []),
        (
            [entry("set_lr", 1e-3, 4), entry("stack_layers", 2, 8)],
            ["operation 2 cannot come: the run ends at step 12, stack_layers 2 comes at step 12 at the earliest"],
            ["stack_layers 2 (due: waited 8 steps)"],
        ),
        (
            [entry("set_lr", 1e-3, 9, trigger_loss=0.1), entry("set_lr", 2e-3, 4), entry("widen_mlp", 2, 1)],
            [
                "operations 2 to 3 may come too late: the run ends at step 12, the first of them (set_lr 2e-3) comes "
                "at step 13 at the latest"
            ],
            ["set_lr 2e-3 (3 of 4 steps waited), widen_mlp 2"],
        ),
        (
            [entry("set_lr", 1e-3, trigger_loss=0.1), entry("set_lr", 2e-3, 2)],
            [],
            ["set_lr 1e-3 (loss 3.0, fires below 0.1), set_lr 2e-3"],
        ),
        (
            [entry("set_lr", 1e-3, 10), entry("set_lr", 2e-3, 1), entry("set_lr", 3e-3, when={"at_share": 0.75})],
            ["operation 3 cannot come: the run ends at step 12, set_lr 3e-3 comes at step 12 at the earliest"],
            ["set_lr 3e-3 (due: 75 % of the run, step 12)"],
        ),
        ([entry("set_lr", 1e-3, when={"at_tokens": 10**6})], [], ["set_lr 1e-3 (768 of 1,000,000 tokens)"]),
    ],
)
def test_it_is_told(tmp_path: Path, schedule: Any, warnings: list[str], remains: list[str]) -> None:
    trainer(tmp_path, schedule).train()
    assert warned(tmp_path) == warnings
    found = left(tmp_path)
    assert [line.split(" (")[0] for line in found] == [line.split(" (")[0] for line in remains]
    if remains and "loss" not in remains[0]:
        assert found == remains


def test_a_resumed_run_tells_of_what_is_left(tmp_path: Path) -> None:
    schedule = [entry("set_lr", 1e-3, 3), entry("stack_layers", 2, 30)]
    trainer(tmp_path, schedule, callbacks=[StopsAfter(5)], **SAVING).train()
    assert len(warned(tmp_path)) == 1
    trainer(tmp_path, schedule, **SAVING).train(True)
    assert warned(tmp_path)[1:] == warned(tmp_path)[:1] and "operation 2 cannot come" in warned(tmp_path)[0]
    trainer(tmp_path, schedule, **{**SAVING, "max_steps": 35}).train(True)
    assert not any("cannot come" in line for line in warned(tmp_path)[2:])
    assert len(left(tmp_path)) == 2


def test_an_interrupted_run_may_go_on(tmp_path: Path) -> None:
    with pytest.raises(RunInterrupted):
        trainer(tmp_path, [entry("set_lr", 1e-3, 9)], callbacks=[Signalled()]).train()
    assert left(tmp_path) == []
