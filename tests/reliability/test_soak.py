"""Many morphs in one process: no growth of memory, live objects, threads or open files.

CI makes a hundred; the long run (`pytest -m long tests/reliability/test_soak.py`) two thousand. What a run must
remember grows: one entry for each operation in its state, record, journal and log. Nothing else may.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from morphing_trainer import MorphingTrainer
from tests.support import same, trainer, weights

RSS_BYTES = 24_000
"""Per morph, resident memory may grow by so much on average, and by `RSS_SLACK` that allocators keep."""
RSS_SLACK = 32 << 20
HISTORY = 60
"""Objects that a morph may add to what a run remembers: its entry, record, lines of the log."""

PLAIN = frozenset({"dict", "list", "tuple", "Record", "str", "mappingproxy"})
"""What a run remembers an operation by."""


def entry(name: str, value: Any, **options: Any) -> dict[str, Any]:
    return {"name": name, "value": value, "max_wait_iters": 1, **options}


GROWTH = [
    entry("change_lr", 0.999),
    entry("change_lr", 0.999),
    entry("stack_layers", [0, 1, 1]),
    entry("freeze_layer", "mlp.0"),
    entry("widen_mlp", 1.5),
    entry("set_attn_lora_rank", 2),
    entry("set_batch_size", 2),
    entry("set_layer_lora_rank", ["attn.0", 4]),
    entry("set_attn_lora_rank", 3),
    entry("merge_lora_weights", None),
    entry("unfreeze_layer", "*"),
    entry("stack_layers", [0, 1, 2, 2], init="identity", reevaluate=True),
    entry("set_embedding_lora_rank", 2),
    entry("set_embedding_lora_rank", 0),
    entry("set_attn_lora_rank", 0),
    entry("set_batch_size", 4),
    entry("freeze_layer", ["wte", "wpe"]),
    entry("set_mlp_width", 128),
    entry("unfreeze_layer", ["wte", "wpe"]),
    entry("reset_optimizer_state", None),
]
"""From two layers to four, under and without adapters. What is executed at the early checkpoint changes no shape."""

EARLY = 2

CYCLE = [
    entry("set_attn_lora_rank", 2),
    entry("set_batch_size", 2),
    entry("set_attn_lora_rank", 4),
    entry("freeze_layer", ["mlp.0", "wte"]),
    entry("merge_lora_weights", None),
    entry("set_layer_lora_rank", ["attn.0", 3], reevaluate=True),
    entry("change_lr", 0.999),
    entry("unfreeze_layer", "*"),
    entry("set_attn_lora_rank", 0),
    entry("set_batch_size", 4),
]
"""Ends with the model and the batch that it begins with."""


@dataclass(frozen=True)
class Sample:
    """What the process holds after `morphs` operations."""

    morphs: int
    memory: int
    tensors: int
    tensor_bytes: int
    threads: int
    files: int
    kinds: Counter[str]


def sample(morphs: int) -> Sample:
    process = psutil.Process()
    gc.collect()
    objects = gc.get_objects()
    tensors = [item for item in objects if isinstance(item, Tensor)]
    return Sample(
        morphs,
        process.memory_info().rss,
        len(tensors),
        sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        threading.active_count(),
        process.num_fds(),
        Counter(type(item).__name__ for item in objects),
    )


def check(samples: Sequence[Sample], history: float) -> None:
    """Compare the first sample, taken when everything is warm, with the last.

    Args:
        history: objects that may be kept of a morph.
    """
    first, last = samples[0], samples[-1]
    morphs = last.morphs - first.morphs
    grown = {name: count - first.kinds[name] for name, count in last.kinds.items() if count > first.kinds[name]}
    told = f"after {morphs} morphs: {dict(sorted(grown.items(), key=lambda item: -item[1])[:12])}"
    assert morphs > 0
    assert last.tensors <= first.tensors, f"{last.tensors - first.tensors} more tensors {told}"
    assert last.tensor_bytes <= first.tensor_bytes, told
    assert last.threads <= first.threads, threading.enumerate()
    assert last.files <= first.files, psutil.Process().open_files()
    kept = {name: count for name, count in grown.items() if count > 8 and name not in PLAIN}
    assert not kept, f"more of {kept} {told}"
    assert sum(last.kinds.values()) - sum(first.kinds.values()) <= history * morphs + 200, told
    assert last.memory - first.memory <= RSS_BYTES * morphs + RSS_SLACK, f"{first.memory} -> {last.memory} {told}"


class Sampler(TrainerCallback):
    """Takes a sample at the end of every so many turns of the cycle, and keeps the first two and the last."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.trainer: MorphingTrainer | None = None
        self.samples: list[Sample] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        assert self.trainer.session is not None
        done = len(self.trainer.session.state.executed)
        if done and done % (self.every * len(CYCLE)) == 0 and (not self.samples or self.samples[-1].morphs != done):
            self.samples[2:] = [sample(done)]


@pytest.fixture(autouse=True)
def _frozen() -> Any:
    """What was there before is not looked through at every collection."""
    logging.getLogger("morphing_trainer").setLevel(logging.ERROR)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    logging.getLogger("morphing_trainer").setLevel(logging.NOTSET)


def grows(folder: Path) -> MorphingTrainer:
    options: dict[str, Any] = {"eval_steps": 7, "save_strategy": "steps", "save_steps": EARLY, "logging_steps": 5}
    return trainer(folder, GROWTH, max_steps=len(GROWTH) + 2, disable_tqdm=True, save_total_limit=99, **options)


def grown_and_shrunk(folder: Path, rounds: int) -> list[Sample]:
    """Samples after the second round and the last: a run grows, and the next goes back to its early checkpoint."""
    samples: list[Sample] = []
    early = folder / f"checkpoint-{EARLY}"
    for number in range(rounds):
        run = grows(folder)
        run.train(resume_from_checkpoint=str(early) if number else None)
        assert run.session is not None
        assert len(run.session.state.executed) == len(GROWTH)
        assert run.model.config.n_layer == 4
        del run
        if number >= 1:
            samples[1:] = [sample(number * len(GROWTH))]
    return samples


def turned(folder: Path, turns: int, every: int) -> list[Sample]:
    """Samples of one run that applies `CYCLE` over and over, from when everything is warm to its end."""
    sampler = Sampler(every)
    options: dict[str, Any] = {"eval_steps": 50, "logging_steps": 20, "disable_tqdm": True, "callbacks": [sampler]}
    run = trainer(folder, [{"repeat": "end", "operations": CYCLE}], max_steps=turns * len(CYCLE) + 3, **options)
    sampler.trainer = run
    run.train()
    return sampler.samples[1:]


def test_a_run_that_goes_back_to_before_it_grew_leaves_nothing(tmp_path: Path) -> None:
    check(grown_and_shrunk(tmp_path / "run", 3), history=0)


def test_a_run_that_changes_all_the_time_keeps_its_history_only(tmp_path: Path) -> None:
    check(turned(tmp_path / "run", 4, 1), HISTORY)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_thousand_morphs_back_and_forth(tmp_path: Path) -> None:
    check(grown_and_shrunk(tmp_path / "run", 52), history=0)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_thousand_morphs_in_one_run(tmp_path: Path) -> None:
    check(turned(tmp_path / "run", 101, 10), HISTORY)


def test_one_trainer_goes_back_to_before_its_model_grew(tmp_path: Path) -> None:
    """As another trainer would that begins with the small model."""
    run = grows(tmp_path)
    run.train()
    once = weights(run)
    run.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{EARLY}"))
    assert same(weights(run), once)


def test_the_check_finds_a_leak(tmp_path: Path) -> None:
    """Of every kind: tensors, objects, threads, files, memory."""
    before = sample(0)
    kept: list[Any] = [torch.zeros(4)]
    with pytest.raises(AssertionError, match="more tensors"):
        check([before, sample(1)], HISTORY)
    kept = [type("Kept", (), {})() for _ in range(20)]
    with pytest.raises(AssertionError, match="Kept"):
        check([before, sample(1)], HISTORY)
    kept = [{"number": number, "other": []} for number in range(400)]
    with pytest.raises(AssertionError, match="after 1 morphs"):
        check([before, sample(1)], HISTORY)
    kept = [(tmp_path / "file").open("w")]
    with pytest.raises(AssertionError, match="file"):
        check([before, sample(1)], HISTORY)
    kept[0].close()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    with pytest.raises(AssertionError, match="Thread"):
        check([before, sample(1)], HISTORY)
    stop.set()
    thread.join()
    before = sample(0)
    kept = [b"1" * (RSS_SLACK + (8 << 20))]
    with pytest.raises(AssertionError, match="->"):
        check([before, sample(1)], HISTORY)
    del kept
