"""What a morph costs: time against allocating and copying the new bytes, and peak memory against the new state.

    python -m benchmarks.morph_cost [--size small] [--repeats 5] [--only "stack_layers 2"] [--compiled]

GPT-2 small (124M parameters) or medium (355M), float32, with AdamW state. Each operation runs in a process of its own,
several times on the same old model (a morph leaves it whole). What is "then" done is done to a model that has adapters
of rank 8 on every attention already, or that is frozen in part. The baseline, in the same process and alternating with
the morph, allocates tensors of the shapes that the morph makes anew and copies data of that size into them. Peak memory
is the highest resident set during the morph (Linux). Medium needs up to 12 GB.

With `--compiled`, also how much longer the first compiled step after the morph takes than later ones, in a run of
`MorphingTrainer` at 1 x 32 tokens and with an empty compilation cache.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config

from benchmarks.recompilation import recompilation
from benchmarks.results import Table, add_keep, options_of, publish
from morphing_trainer import Morphed, morph
from morphing_trainer.models import new_model

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 512},  # to try the benchmark out
    "small": {"n_layer": 12, "n_embd": 768, "n_head": 12},
    "medium": {"n_layer": 24, "n_embd": 1024, "n_head": 16},
}
_RANK = {"name": "set_attn_lora_rank", "value": 8}
_FREEZE = {"name": "freeze_layer", "value": ["wte", "h.0-1"]}
OPERATIONS: dict[str, list[dict[str, Any]]] = {
    "stack_layers 2": [{"name": "stack_layers", "value": 2}],
    "stack_layers 2, identity": [{"name": "stack_layers", "value": 2, "init": "identity"}],
    "widen_mlp 2": [{"name": "widen_mlp", "value": 2}],
    "set_mlp_width": [{"name": "set_mlp_width", "value": 5120}],
    "set_attn_lora_rank 8": [_RANK],
    "set_layer_lora_rank [mlp.0, 8]": [{"name": "set_layer_lora_rank", "value": ["mlp.0", 8]}],
    "set_embedding_lora_rank 8": [{"name": "set_embedding_lora_rank", "value": 8}],
    "decrease_vocab_lora_scaling 2": [
        {"name": "set_embedding_lora_rank", "value": 8},
        {"name": "decrease_vocab_lora_scaling", "value": 2},
    ],
    "then decrease_attn_lora_scaling 2": [_RANK, {"name": "decrease_attn_lora_scaling", "value": 2}],
    "then decrease_attn_lora_scaling 0.5": [_RANK, {"name": "decrease_attn_lora_scaling", "value": 0.5}],
    "then change_lora_alpha 2": [_RANK, {"name": "change_lora_alpha", "value": 2}],
    "then merge_lora_weights": [_RANK, {"name": "merge_lora_weights"}],
    "then merge_lora_weights, removed": [_RANK, {"name": "merge_lora_weights", "restart": False}],
    "reset_optimizer_state": [{"name": "reset_optimizer_state"}],
    "freeze_layer [wte, h.0-1]": [_FREEZE],
    "then unfreeze_layer": [_FREEZE, {**_FREEZE, "name": "unfreeze_layer"}],
}
"""What is measured is the last of each: all that change which tensors there are, or which are trained."""

POOL = 1 << 30
"""Bytes that copies are made from: far more than any cache holds."""


@dataclass(frozen=True)
class Cost:
    """What one operation costs.

    Attributes:
        created, state: bytes that are made anew, and of all weights and optimizer state afterwards.
        morphs, copies: seconds of the morph, and of allocating and copying as much, repeat by repeat.
        peak: bytes at most, the rest of the process left out.
    """

    created: int
    state: int
    morphs: list[float]
    copies: list[float]
    peak: int


# ---- Memory and time of this process --------------------------------------------------------------------------------


def resident(field: str) -> int:
    """Bytes of the process's memory: `VmRSS` now, `VmHWM` at its highest since `reset_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}: this benchmark needs Linux")


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def settle() -> None:
    """Give freed memory back to the system, so that morph and baseline both pay for fresh pages."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    settle()
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def copies_of(sources: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.empty_like(source).copy_(source) for source in sources]


def laid_out(shapes: Sequence[tuple[torch.Size, torch.dtype]], pool: torch.Tensor) -> list[torch.Tensor]:
    """Tensors of these shapes that lie one behind the other in `pool`, (bytes,) uint8, over and over.

    Every byte is read from a place that was not read for long: a small source would stay in the cache.
    """
    found, begin = [], 0
    for shape, dtype in shapes:
        size = shape.numel() * dtype.itemsize
        begin = begin if begin + size <= len(pool) else 0
        found.append(pool[begin : begin + size].view(dtype).view(shape))
        begin += -(-size // 64) * 64
    return found


def tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, torch.Tensor]:
    """Storage address -> tensor, of all weights and all optimizer state."""
    found = [parameter.detach() for parameter in model.parameters()]
    found += [value for state in optimizer.state.values() for value in state.values()]
    return {tensor.data_ptr(): tensor for tensor in found}


# ---- One operation --------------------------------------------------------------------------------------------------


def starting_point(
    config: GPT2Config, steps: list[dict[str, Any]], device: torch.device | str = "cpu"
) -> tuple[Any, torch.optim.Optimizer]:
    """A model with AdamW state, after `steps`."""
    model: Any = new_model(config, seed=0).to(device)  # type: ignore[arg-type]
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    length = min(32, config.n_positions)
    tokens = torch.randint(config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0)).to(device)
    model(tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    for step in steps:
        model, optimizer, _ = morph(model, step, optimizer=optimizer)
    return model, optimizer


def measure(name: str, size: str, repeats: int) -> Cost:
    *before, operation = OPERATIONS[name]
    model, optimizer = starting_point(config(size), before)
    old = tensors(model, optimizer)
    pool = torch.ones(POOL if size != "tiny" else POOL >> 5, dtype=torch.uint8)
    morphs, copies, created, total, peak = [], [], 0, 0, 0
    for repeat in range(repeats + 1):  # the first one warms up
        settle()
        floor = resident("VmRSS") - sum(tensor.nbytes for tensor in old.values())
        reset_peak()
        seconds, result = timed(partial(morph, model, operation, optimizer=optimizer))
        highest = resident("VmHWM") - floor
        assert isinstance(result, Morphed)
        assert result.optimizer is not None
        new = tensors(result.model, result.optimizer)
        made = [tensor for address, tensor in new.items() if address not in old]
        created, total = sum(tensor.nbytes for tensor in made), sum(tensor.nbytes for tensor in new.values())
        sources = laid_out([(tensor.shape, tensor.dtype) for tensor in made], pool)
        del result, new, made
        copied, held = timed(partial(copies_of, sources))
        del held
        if repeat:
            morphs.append(seconds)
            copies.append(copied)
            peak = max(peak, highest)
    return Cost(created, total, morphs, copies, peak)


# ---- All of them ----------------------------------------------------------------------------------------------------


def config(size: str) -> GPT2Config:
    return GPT2Config(**SIZES[size], activation_function="gelu_pytorch_tanh", bos_token_id=0, eos_token_id=0)


def in_new_process(work: Callable[[], Any]) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(work).result()


def row(name: str, cost: Cost) -> list[str]:
    copied = ratio = "-"  # nothing is
    if cost.created:
        ratios = [morphing / copying for morphing, copying in zip(cost.morphs, cost.copies, strict=True)]
        copied = f"{statistics.median(cost.copies):.3f} s"
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return [
        f"`{name}`" if not name.startswith("then ") else f"then `{name[5:]}`",
        f"{cost.created / 1e6:,.1f} MB",
        f"{cost.state / 1e6:,.0f} MB",
        f"{statistics.median(cost.morphs):.2f} s",
        copied,
        ratio,
        f"{cost.peak / cost.state:.2f}",
    ]


def table(costs: Mapping[str, Cost], recompilations: Mapping[str, float], options: argparse.Namespace) -> Table:
    columns = ["operation", "created", "new state", "morph", "copying as much", "ratio", "peak memory / new state"]
    rows = [row(name, cost) for name, cost in costs.items()]
    if recompilations:
        columns.append("recompilation")
        rows = [[*cells, f"{recompilations[name]:.1f} s"] for name, cells in zip(costs, rows, strict=True)]
    told = f"GPT-2 {options.size}, float32, with AdamW state; medians of {options.repeats} (ranges)."
    return Table(columns, rows, told)


def parser() -> argparse.ArgumentParser:
    parser = options_of(__doc__)
    parser.add_argument("--size", choices=SIZES, default="small", help="which GPT-2")
    parser.add_argument("--repeats", type=int, default=5, help="how often each is measured")
    parser.add_argument(
        "--only", choices=OPERATIONS, nargs="+", metavar="OPERATION", help="operations of the table, instead of all"
    )
    parser.add_argument("--compiled", action="store_true", help="measure recompilation, too")
    add_keep(parser)
    return parser


def main() -> None:
    options = parser().parse_args()
    costs, recompilations = {}, {}
    for name in options.only or OPERATIONS:
        costs[name] = in_new_process(partial(measure, name, options.size, options.repeats))
        if options.compiled:
            recompilations[name] = in_new_process(partial(recompilation, OPERATIONS[name], config(options.size)))
    publish(table(costs, recompilations, options), "benchmarks.morph_cost", options.keep)


if __name__ == "__main__":
    main()
