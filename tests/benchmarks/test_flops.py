"""FLOPs of a whole run, read from its journal, are those of the operations that ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import run_flops
from morphing_trainer import MorphingConfig, MorphingTrainer
from tests.support import Tokens, tiny_model

LENGTH = 16


@pytest.mark.parametrize(
    "schedule",
    [
        [],
        [{"name": "stack_layers", "value": 2, "init": "identity", "when": {"at_step": 1}}],
        [
            {"name": "freeze_layer", "value": "h.0", "when": {"at_step": 1}},
            {"name": "change_batch_size", "value": 2, "when": {"at_step": 2}},
        ],
    ],
    ids=["plain", "grown", "frozen, larger batch"],
)
def test_a_run_counts_what_the_counter_sees(tmp_path: Path, schedule: list[dict[str, Any]]) -> None:
    trainer = MorphingTrainer(
        tiny_model(attn_implementation="eager"),  # whose matrix products the counter sees on every device
        MorphingConfig(
            str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=2,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=Tokens(12, LENGTH),
        schedule=schedule,
    )
    with FlopCounterMode(display=False) as counter:
        trainer.train()
    assert run_flops(tmp_path, LENGTH) == counter.get_total_flops() > 0
