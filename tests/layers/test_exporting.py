"""The trained model is saved as a whole, and only if it is alive."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from morphing_trainer.errors import ModelError
from tests.support import trainer


def test_a_dead_model_is_not_saved(tmp_path: Path) -> None:
    """An earlier one stays."""
    made = trainer(tmp_path / "run", [])
    made.save_whole(tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    with torch.no_grad():
        made.model.transformer.h[0].mlp.c_fc.bias[0] = math.inf
    with pytest.raises(ModelError, match=r"1 of its parameters hold NaN or infinity \(transformer\.h\.0\.mlp\.c_fc"):
        made.save_whole(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
