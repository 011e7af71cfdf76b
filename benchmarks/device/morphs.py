"""What a morph costs on a device: alone, and in a run that goes on after it."""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import set_seed

from benchmarks.bare_loop import allocated, peak_above, reset_peak
from benchmarks.device.budget import Figures
from benchmarks.device.memory import clean, device, settle, timed
from benchmarks.morph_cost import starting_point, tensors
from benchmarks.throughput import Size, samples
from morphing_trainer import MorphingConfig, MorphingTrainer, morph
from morphing_trainer.data.samples import collate
from morphing_trainer.memory.failures import brief
from morphing_trainer.models import new_model
from morphing_trainer.reporting.records import Record

ADAPTERS = {"name": "set_attn_lora_rank", "value": 8}
OPERATIONS: dict[str, list[dict[str, Any]]] = {
    "stack_layers 2, copies": [{"name": "stack_layers", "value": 2}],
    "stack_layers 2, identity": [{"name": "stack_layers", "value": 2, "init": "identity"}],
    "widen_mlp 2": [{"name": "widen_mlp", "value": 2}],
    "set_attn_lora_rank 8": [ADAPTERS],
    "then merge_lora_weights": [ADAPTERS, {"name": "merge_lora_weights", "value": None, "restart": False}],
}
"""What is measured is the last of each."""

REPEATS = 3
GOES_ON = 6
"""Steps of a run between two operations; the first of them compiles."""


def alone(model: str, size: Size) -> Iterator[Figures]:
    """Every operation on a model with Adam's memory, against copying as many bytes as it makes anew.

    Memory is found as in a run: PyTorch has kept it since it was used before.
    """
    clean()
    begun, memory = starting_point(size.config(), [], device())
    for name, (*before, operation) in OPERATIONS.items():
        figures: Figures = {"table": "morphs", "model": model, "operation": name}
        try:
            yield figures | _measured(*_after(begun, memory, before), operation)
        except Exception as error:  # of any kind: the other operations have nothing to do with it
            yield figures | {"failed": brief(error)}


def _after(model: Any, optimizer: Any, operations: list[dict[str, Any]]) -> tuple[Any, Any]:
    for operation in operations:
        model, optimizer, _ = morph(model, operation, optimizer=optimizer)
    return model, optimizer


def _measured(model: Any, optimizer: Any, operation: dict[str, Any]) -> Figures:
    old = tensors(model, optimizer)
    own = sum(tensor.nbytes for tensor in old.values())
    morphs: list[float] = []
    copies: list[float] = []
    peaks: list[int] = []
    created = total = 0
    for repeat in range(REPEATS + 1):  # the first one warms up
        gc.collect()
        others = allocated() - own
        reset_peak()
        seconds, result = timed(partial(morph, model, operation, optimizer=optimizer))
        peak = peak_above(others)
        new = tensors(result.model, result.optimizer)
        made = [tensor for address, tensor in new.items() if address not in old]
        created, total = sum(tensor.nbytes for tensor in made), sum(tensor.nbytes for tensor in new.values())
        shapes = [(tensor.shape, tensor.dtype) for tensor in made]
        del result, new, made
        sources = [torch.ones(shape, dtype=dtype, device=device()) for shape, dtype in shapes]
        copied, held = timed(partial(_copies, sources))
        del held, sources
        if repeat:
            morphs.append(seconds)
            copies.append(copied)
            peaks += [] if peak is None else [peak]
    return {
        "created_bytes": created,
        "state_bytes": total,
        "morph_s": statistics.median(morphs),
        "copy_s": statistics.median(copies),
        "peak_bytes": max(peaks, default=None),
    }


def _copies(sources: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.empty_like(source).copy_(source) for source in sources]


class Clock(TrainerCallback):
    """Seconds of every step, from an idle device to an idle device, and where operations were applied."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.operations: list[tuple[int, Record]] = []
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        settle()
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        settle()
        self.steps.append(time.perf_counter() - self._began)

    def on_operation(self, args: Any, state: Any, control: Any, record: Record, **kwargs: Any) -> None:
        self.operations.append((len(self.steps), record))


def in_a_run(model: str, size: Size, operations: list[dict[str, Any]], compiled: bool) -> Iterator[Figures]:
    """Operations on a model that trains in bf16: the whole change, and the first step after it."""
    clean()
    clock = Clock()
    schedule = [{**operation, "max_wait_iters": GOES_ON} for operation in operations]
    with fresh_compiler() if compiled else contextlib.nullcontext():
        train(size, schedule, GOES_ON * (len(operations) + 1), clock, torch_compile=compiled)
    clean()
    for operation, (at, record) in zip(operations, clock.operations, strict=True):
        usual = statistics.median(clock.steps[at + 1 : at + GOES_ON])
        yield {
            "table": "in a run",
            "model": model,
            "mode": "compiled" if compiled else "eager",
            "operation": f"{operation['name']} {operation['value']}",
            "batch": size.batch,
            "operation_s": record.seconds,
            "first_step_s": clock.steps[at],
            "usual_step_s": usual,
        }


@contextlib.contextmanager
def fresh_compiler() -> Iterator[None]:
    """Without what was compiled before, in this process or an earlier one: life meets each new model only once."""
    from torch._inductor.utils import clear_caches, fresh_cache

    with fresh_cache():
        yield
    clear_caches()


def train(
    size: Size, schedule: Any, steps: int, callback: TrainerCallback, *, count: int | None = None, **options: Any
) -> MorphingTrainer:
    """A finished run of `MorphingTrainer` in bf16, on `count` samples of random tokens; by default each is used once.

    Raises:
        MemoryError: if memory ran out, and it has gone on with a smaller batch.
    """
    set_seed(0)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        arguments = MorphingConfig(
            folder,
            max_steps=steps,
            per_device_train_batch_size=size.batch,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=device().type == "cpu",
            bf16=True,
            **options,
        )
        made = MorphingTrainer(
            new_model(size.config(), seed=0),
            arguments,
            train_dataset=samples(size, count or size.batch * steps),
            data_collator=collate,
            schedule=schedule,
            callbacks=[callback],
        )
        made.train()
    assert made.session is not None
    if made.session.state.halvings:
        raise MemoryError(f"a batch of {made.args.per_device_train_batch_size * 2} did not fit")
    return made
