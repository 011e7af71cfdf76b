"""Files of a checkpoint that are read while they are hashed."""

from __future__ import annotations

from pathlib import Path

import pytest

from morphing_trainer.checkpoint.ahead import Ahead
from morphing_trainer.errors import CheckpointError
from tests.support import same, trainer, weights


def test_a_resumed_run_does_not_change_with_its_checkpoint(tmp_path: Path) -> None:
    """Also not in weights that are frozen, which no step copies."""
    options = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8}
    frozen = [{"name": "freeze_layer", "value": "wpe", "max_wait_iters": 2, "trigger_loss": 0}]
    run = trainer(tmp_path, frozen, **options)
    run.train()
    before = weights(run)
    resumed = trainer(tmp_path, frozen, **options)
    resumed.train(str(tmp_path / "checkpoint-8"))
    for name in ("model.safetensors", "optimizer.pt"):
        path = tmp_path / "checkpoint-8" / name
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(bytes(path.stat().st_size // 2))
    assert same(weights(resumed), before)


def test_an_error_comes_where_the_result_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"none")
    ahead = Ahead(tmp_path, "w", "")
    assert ahead.optimizer() is None
    with pytest.raises(CheckpointError, match="cannot be read"):
        ahead.weights()
    assert ahead.weights() is None
