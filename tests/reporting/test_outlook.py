"""The table of a run to come, wide and narrow, and as lines."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from torch.optim import AdamW

from morphing_trainer.advice import advise
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.outlook import Conditions, Outlook, foresee
from morphing_trainer.planning import played
from morphing_trainer.reporting.outlook import outlook_lines, outlook_table, size
from morphing_trainer.schedule import Schedule
from morphing_trainer.settings import Settings
from tests.support import tiny_config

SETTINGS = Settings(1e-3, batch_size=4, grad_accum=1, warmup_steps=0, eval_iters=None, eval_interval=10)
ENTRIES: list[dict[str, Any]] = [
    {"name": "set_attn_lora_rank", "value": 4, "max_wait_iters": 20},
    {"name": "decrease_vocab_lora_scaling", "value": 2, "trigger_loss": 3.0, "max_wait_iters": 50},
    {"name": "stack_layers", "value": 2, "trigger_loss": 2.0},
]


@pytest.fixture(scope="module")
def outlook() -> Outlook:
    conditions = Conditions(8, lambda parameters: AdamW(parameters, lr=1e-3), 1000)
    entries = [ENTRIES[0], {"name": "set_embedding_lora_rank", "value": 2, "max_wait_iters": 5}, *ENTRIES[1:]]
    return foresee(played(Schedule.of(entries), ModelSpec(tiny_config()), SETTINGS, steps=1000), conditions)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_names_and_figures_stay_whole(outlook: Outlook, width: int) -> None:
    screen = io.StringIO()
    Console(file=screen, width=width, no_color=True).print(outlook_table(outlook, advise(outlook), ["model: tiny"]))
    shown = screen.getvalue()
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width
    for words in ("model: tiny", "decrease_vocab_lora_scaling 2", "30 to 75" if width > 120 else "step 30 to 75"):
        assert words in shown, shown
    assert ("from step 40" if width < 120 else "from 40") in shown
    assert "Advice" in shown


def test_as_lines(outlook: Outlook) -> None:
    lines = outlook_lines(outlook, [], ["model: tiny"])
    assert lines[0] == "model: tiny"
    assert len([line for line in lines if "2 x 16, mlp 64" in line]) == 4
    assert any(line.startswith("Cost: at most ") for line in lines)


def test_sizes() -> None:
    assert [size(n) for n in (0, 1000, 1024, 1536, 2**20, 5 * 2**30)] == [
        "0 bytes",
        "1000 bytes",
        "1.00 KiB",
        "1.50 KiB",
        "1.00 MiB",
        "5.00 GiB",
    ]
