"""A model that has become NaN is not saved: the last good checkpoint stays, and can be resumed."""

from __future__ import annotations

import logging
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from morphing_trainer.checkpoint.store import checkpoints
from morphing_trainer.errors import NotFiniteError
from morphing_trainer.run.consensus import Consensus
from morphing_trainer.run.signals import RunInterrupted
from tests.support import losses, trainer
from tests.trainer.common import entry


class Poisons(TrainerCallback):
    """Puts a value into the model after a step, and counts what it is told of saving."""

    def __init__(self, step: int, value: float) -> None:
        self.step, self.value = step, value
        self.saved: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                model.transformer.h[-1].mlp.c_fc.weight[0, 0] = self.value

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved.append(state.global_step)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_is_not_saved(tmp_path: Path, value: float, caplog: pytest.LogCaptureFixture) -> None:
    poisons = Poisons(6, value)
    options = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
    run = trainer(tmp_path, [entry("stack_layers", 2, 3)], callbacks=[poisons], **options)
    with caplog.at_level(logging.ERROR, "morphing_trainer"), pytest.raises(NotFiniteError, match="step 7: the loss"):
        run.train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-2"]
    assert poisons.saved == [2, 4]
    first = "transformer.h.3.mlp.c_fc.weight first"
    assert f"step 6: 1 of the model's parameters hold NaN or infinity ({first})" in caplog.text
    assert not list(tmp_path.glob(".morph-*"))

    again = trainer(tmp_path, [entry("stack_layers", 2, 3)], **options)
    again.train(True)
    assert all(map(math.isfinite, losses(again)))
    assert checkpoints(tmp_path)[0].name == "checkpoint-12"


def test_exploding_rate(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 1, "max_grad_norm": 0.0, "save_total_limit": 20}
    run = trainer(tmp_path, [entry("set_lr", 1e38, 3)], lr_scheduler_type="constant", **options)
    with pytest.raises(NotFiniteError):
        run.train()
    saved = checkpoints(tmp_path)
    assert 3 <= len(saved) < 12
    good = trainer(tmp_path / "x", [entry("set_lr", 1e38, 3)], lr_scheduler_type="constant", **options)
    bundle = good.find_bundle(str(saved[0]), Consensus())
    assert bundle is not None
    assert all(bool(p.isfinite().all()) for p in run.model.parameters()) is False


def test_interrupted(tmp_path: Path) -> None:
    """It leaves as asked, and does not claim to have saved."""

    class Stops(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                signal.raise_signal(signal.SIGTERM)

    run = trainer(tmp_path, callbacks=[Poisons(5, math.nan), Stops()])
    with pytest.raises(RunInterrupted, match="saved nothing") as caught:
        run.train()
    assert caught.value.code == 128 + signal.SIGTERM
    assert caught.value.checkpoint is None
    assert checkpoints(tmp_path) == []
