"""`torch_compile`: the compiled model is the current one, and does what the eager one does."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import TrainerCallback

from tests.support import losses, tiny_model, trainer
from tests.trainer.common import entry


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class CountsGraphs(TrainerCallback):
    """Graphs compiled so far, at the end of each step."""

    def __init__(self) -> None:
        self.graphs: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.graphs.append(counters["stats"]["unique_graphs"])


def test_equals_eager_and_compiles_after_every_morph(tmp_path: Path) -> None:
    """More morphs than the compiler would compile one function for (8). Largest relative difference of a loss: 1e-5."""
    turns = ["freeze_layer", "unfreeze_layer"] * 4
    schedule = [entry("stack_layers", 2, 1), *(entry(name, "wpe", 1) for name in turns), entry("widen_mlp", 2, 1)]
    options = {"max_steps": 11, "eval_strategy": "no"}
    model = tiny_model(n_layer=1)
    eager = trainer(tmp_path / "eager", schedule, model, **options)
    eager.train()
    counts = CountsGraphs()
    compiling = {"torch_compile": True, "torch_compile_backend": "eager", **options}
    compiled = trainer(tmp_path / "compiled", schedule, model, callbacks=[counts], **compiling)
    compiled.train()
    assert isinstance(compiled.model_wrapped, torch._dynamo.OptimizedModule)
    assert compiled.model_wrapped._orig_mod is compiled.model
    assert len(compiled.model.transformer.h) == 2
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-5)
    grown = [new - old for old, new in pairwise([0, *counts.graphs])]
    assert all(graphs > 0 for graphs in grown), f"some morph was followed by no compilation: {grown}"


def test_adapters(tmp_path: Path) -> None:
    """That come, are merged and go; with a tied embedding."""
    schedule = [
        entry("set_attn_lora_rank", 4, 1),
        entry("set_embedding_lora_rank", 2, 1),
        entry("merge_lora_weights", None, 1),
        entry("merge_lora_weights", None, 1, restart=False),
    ]
    options = {"max_steps": 5, "eval_strategy": "no"}
    eager = trainer(tmp_path / "eager", schedule, tiny_model(n_layer=1), **options)
    eager.train()
    compiling = {"torch_compile": True, "torch_compile_backend": "eager", **options}
    compiled = trainer(tmp_path / "compiled", schedule, tiny_model(n_layer=1), **compiling)
    compiled.train()
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-5)
    assert isinstance(compiled.model_wrapped, torch._dynamo.OptimizedModule)
