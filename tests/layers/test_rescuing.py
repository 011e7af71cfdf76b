"""Going back: what the checkpoint must know, what must not be deleted, and which checkpoints are no way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from morphing_trainer.checkpoint.store import checkpoints
from morphing_trainer.errors import CheckpointError, NotFiniteError
from morphing_trainer.run.bundle import read_bundle
from tests.trainer import test_nan
from tests.trainer.common import entry
from tests.trainer.spoiling import Spoils
from tests.trainer.test_guarded import HARSH, Dies, Killed, assert_same_run, events, guarded, run, without


def test_the_checkpoint_knows_at_once_what_was_undone(tmp_path: Path) -> None:
    """Killed in the first step after it has gone back, a run does not try the operation again."""
    schedule = [guarded(wait=2, guard={**HARSH, "within_steps": 2})]
    with pytest.raises(Killed):
        run(tmp_path, schedule, callbacks=[Dies(4)], max_steps=6)
    assert checkpoints(tmp_path)[0].name == "checkpoint-2"
    state = read_bundle(tmp_path / "checkpoint-2").state
    assert state["executed"][-1]["rolled_back"] and state["position"]["done"] == 1
    run(tmp_path, schedule, True, max_steps=6)
    assert len(events(tmp_path, "rolled_back")) == 1


class Damages(TrainerCallback):
    """Harms the state from before, while the guard is open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            (self.folder / "checkpoint-2" / "optimizer.pt").write_bytes(b"")


def test_nothing_is_deleted_for_a_damaged_state_from_before(tmp_path: Path) -> None:
    """It may be all that there is."""
    stops = guarded(wait=2, guard={"max_loss_increase": 0.0, "within_steps": 2, "otherwise": "stop"})
    with pytest.raises(CheckpointError, match=r"checkpoint-2/optimizer\.pt"):
        run(tmp_path, [stops], callbacks=[Damages(tmp_path)], max_steps=6)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-2", "checkpoint-1"]


def test_steps_left_out_in_a_row_are_the_operations_fault(tmp_path: Path) -> None:
    """Under a guard the run need not end: without the operation it may be well."""
    schedule = [guarded(wait=3, guard={"max_loss_increase": 100, "within_steps": 9})]
    options = {"on_nan": "skip", "nan_limit": 2, "max_steps": 6}

    class Once(Spoils):
        """Spoils what the operation has made of the run, and not the run without it."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step:
                self.steps = ()

    made = run(tmp_path / "run", schedule, callbacks=[Once([5, 6])], **options)
    (event,) = events(tmp_path / "run", "rolled_back")
    assert "2 steps in a row" in event["reason"] and event["until"] == 6
    assert_same_run(made, run(tmp_path / "plain", without(schedule, 0), **options))


def test_nothing_comes_of_a_bad_step(tmp_path: Path) -> None:
    """Its loss is bad and its weights are not: it is found before it is logged, evaluated or saved."""
    spoils = Spoils([4], what="told")
    made = test_nan.make(tmp_path, callbacks=[spoils], max_grad_norm=0.0)
    with pytest.raises(NotFiniteError, match="step 4: the loss is NaN"):
        made.train()
    assert checkpoints(tmp_path)[0].name == "checkpoint-3"
    assert max(line["step"] for line in made.state.log_history) == 3


@pytest.mark.parametrize("way", ["rollback", "stop"])
def test_no_way_leads_back_to_a_life_before(tmp_path: Path, way: str) -> None:
    """Not even when the run has saved again: later steps in its folder are of the life before."""
    test_nan.run(tmp_path, [entry("change_lr", 1.0, 1)])
    made = test_nan.make(tmp_path, [entry("change_lr", 1.0, 1)], callbacks=[Spoils([5])], on_nan=way)
    if way == "rollback":
        made.train(str(tmp_path / "checkpoint-2"))
        (event,) = test_nan.events(tmp_path, "returned")
        assert event["step"] == 4
    else:
        with pytest.raises(NotFiniteError, match="checkpoint-4 is the last good"):
            made.train(str(tmp_path / "checkpoint-2"))
