"""Infinite gradients where a gradient scaler looks after them."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from tests.support import losses
from tests.trainer.spoiling import Spoils
from tests.trainer.test_nan import events, make


def test_infinite_gradients_are_the_scalers_business(tmp_path: Path) -> None:
    """As under fp16, on the CPU: it leaves the update out and lowers its scale, and the run does not end."""
    made = make(tmp_path, callbacks=[Spoils([4], math.inf, "gradient")], max_grad_norm=0.0)
    made.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    made.train()
    assert made.state.global_step == 10 and all(map(math.isfinite, losses(made)))
    assert made.accelerator.scaler.get_scale() == 4.0
    assert not events(tmp_path, "failed", "skipped_step")
