"""`torch_compile`: the compiled model is the current one, and does what the eager one does."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import TrainerCallback

from tests.support import Tokens, losses, tiny_model, trainer
from tests.trainer.common import entry
from tests.trainer.program import finish, started


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


STEADY = [
    entry("stack_layers", 2, 2),
    entry("freeze_layer", "wpe", 2),
    entry("widen_mlp", 2, 2),
    entry("set_attn_lora_rank", 2, 2),
    entry("change_lr", 0.5, 2),
    entry("set_batch_size", 3, 2),
    entry("set_batch_size", 2, 2),
]
BOUND = [1, 1, 1, 1, 1, 0, 1, 1]
"""Graphs compiled from the start and after each operation, at most: one for a new model, one where batches first change
size (the compiler takes the size as fixed until then) and one where they change again; none for a rate."""


class Phases(TrainerCallback):
    """Graphs compiled, by the number of operations done before."""

    def __init__(self) -> None:
        self.graphs = [0] * (len(STEADY) + 1)
        self.seen = 0
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = counters["stats"]["unique_graphs"]
        self.graphs[len(self.trainer.session.state.executed)] += now - self.seen
        self.seen = now


def steady(folder: Path, **options: Any) -> list[int]:
    phases = Phases()
    fixed = {"max_steps": 16, "eval_strategy": "no", "eval_steps": None, "disable_tqdm": True}
    compiling = {"torch_compile": True, "torch_compile_backend": "eager"}
    model = tiny_model(n_layer=1)
    made = trainer(folder, STEADY, model, callbacks=[phases], data=Tokens(400), **fixed, **compiling, **options)
    phases.trainer = made
    made.train()
    assert made.state.global_step == 16
    return phases.graphs


def check_bound(graphs: list[int]) -> None:
    assert graphs[0] >= 1, "nothing was compiled"
    assert all(found <= most for found, most in zip(graphs, BOUND, strict=True)), graphs
    for number in (1, 2, 3, 4):
        assert graphs[number] == 1, f"the model after operation {number} was compiled {graphs[number]} times"


def test_recompilations_are_bounded(tmp_path: Path) -> None:
    """Two steps after each operation, with nothing else that would make the compiler start again."""
    check_bound(steady(tmp_path / "run"))


def go(folder: Path, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    rank = environment["RANK"]
    log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    graphs = steady(folder / "run", ddp_backend="gloo", per_device_train_batch_size=4)
    (folder / f"{rank}.json").write_text(json.dumps(graphs))
    torch.distributed.destroy_process_group()


def test_recompilations_are_bounded_under_ddp(tmp_path: Path) -> None:
    """DDP cuts the graph where a bucket of gradients is full; this model fits into one."""
    assert finish(started(go, tmp_path, 2), 200) == [0, 0], (tmp_path / "0.log").read_text()[-3000:]
    for rank in (0, 1):
        check_bound(json.loads((tmp_path / f"{rank}.json").read_text()))
