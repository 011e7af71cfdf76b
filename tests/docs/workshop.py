"""The folder in which blocks of the pages are run: what their commands name is there, small enough to take no time."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from generation.outputs import ROOT, fill
from transformers import GPT2LMHeadModel

from morphing_trainer.architectures import ARCHITECTURES
from morphing_trainer.cli import train
from morphing_trainer.operations import NAMES, OPERATIONS
from morphing_trainer.triggers import VALUED
from tests.support import tiny_config

REGISTRIES: tuple[dict[str, Any], ...] = (OPERATIONS, NAMES, VALUED, ARCHITECTURES)

DEMO = [
    "--config",
    "configs/demo.yaml",
    "--max_steps",
    "6",
    "--eval_steps",
    "2",
    "--eval_iters",
    "1",
    "--logging_steps",
]
DEMO += ["1", "--save_steps", "3", "--n_embd", "16", "--n_inner", "32", "--vocab_size", "300", "--block_size", "64"]
"""A run like the demo's that takes a second."""


def prepare(folder: Path) -> None:
    """Make the runs, the model and the text that pages take to be there."""
    fill(folder)
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    (folder / "my.txt").write_text(text, encoding="utf-8")
    with contextlib.chdir(folder):
        schedule = ["--scaling_schedule_file", "configs/schedules/guarded.yaml"]
        assert train.main([*DEMO, *schedule, "--output_dir", "runs/demo", "--train_file", "my.txt"]) == 0
    for name in ("a", "b"):
        shutil.copytree(folder / "runs" / "demo", folder / "runs" / name)
    # As deep and as long as GPT-2, so that schedules and lengths fit it.
    model = GPT2LMHeadModel(tiny_config(n_layer=12, n_embd=8, n_positions=1024, vocab_size=300))
    for name in ("gpt2", "openai-community/gpt2"):
        model.save_pretrained(folder / name)
        for path in (folder / "runs" / "demo" / "model").glob("tokenizer*"):
            shutil.copy(path, folder / name)


@contextlib.contextmanager
def opened(folder: Path, prepared: Path) -> Iterator[None]:
    """Work in `folder`, furnished as `prepared`; what a page registers or imports is forgotten behind it."""
    shutil.copytree(prepared, folder, symlinks=True, dirs_exist_ok=True)
    kept = [dict(registry) for registry in REGISTRIES]
    modules, path, argv = set(sys.modules), list(sys.path), list(sys.argv)
    sys.path.insert(0, str(folder))
    try:
        with contextlib.chdir(folder), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for registry, before in zip(REGISTRIES, kept, strict=True):
            registry.clear()
            registry.update(before)
        sys.path[:], sys.argv[:] = path, argv
        for name in set(sys.modules) - modules:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]
