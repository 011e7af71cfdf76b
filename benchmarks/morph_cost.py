"""What a morph costs: time against allocating and copying the new bytes, and peak memory against the new state.

GPT-2 small (124M parameters) with AdamW state: stacked to twice the depth, then widened to twice the MLP.

    python -m benchmarks.morph_cost [--repeats 5] [--small]

Each operation runs in a process of its own, several times on the same old model (a morph leaves it whole). The
baseline, in the same process and alternating with it, allocates tensors of the shapes that the morph makes anew and
copies data of that size into them. Peak memory is the highest resident set during the morph (Linux).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config

from morphing_trainer import Morphed, morph
from morphing_trainer.models import new_model

OPERATIONS: dict[str, list[dict[str, Any]]] = {
    "stack_layers 2 (copy)": [{"name": "stack_layers", "value": 2}],
    "then widen_mlp 2": [{"name": "stack_layers", "value": 2}, {"name": "widen_mlp", "value": 2}],
}


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


def tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, torch.Tensor]:
    """Storage address -> tensor, of all weights and all optimizer state."""
    found = [parameter.detach() for parameter in model.parameters()]
    found += [value for state in optimizer.state.values() for value in state.values()]
    return {tensor.data_ptr(): tensor for tensor in found}


def starting_point(config: GPT2Config, steps: list[dict[str, Any]]) -> tuple[Any, torch.optim.Optimizer]:
    """A model with AdamW state, after `steps`."""
    model: Any = new_model(config, seed=0)
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(config.vocab_size, (1, 32), generator=torch.Generator().manual_seed(0))
    model(tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    for step in steps:
        model, optimizer, _ = morph(model, step, optimizer=optimizer)
    return model, optimizer


def measure(name: str, config: GPT2Config, repeats: int) -> dict[str, Any]:
    *before, operation = OPERATIONS[name]
    model, optimizer = starting_point(config, before)
    old = tensors(model, optimizer)
    morphs, copies, created, total, peak = [], [], 0, 0, 0
    for repeat in range(repeats + 1):  # the first one warms up
        settle()
        floor = resident("VmRSS") - sum(tensor.nbytes for tensor in old.values())
        reset_peak()
        seconds, result = timed(lambda: morph(model, operation, optimizer=optimizer))
        highest = resident("VmHWM") - floor
        assert isinstance(result, Morphed)
        assert result.optimizer is not None
        new = tensors(result.model, result.optimizer)
        shapes = [(tensor.shape, tensor.dtype) for address, tensor in new.items() if address not in old]
        created = sum(new[address].nbytes for address in new if address not in old)
        total = sum(tensor.nbytes for tensor in new.values())
        del result, new
        # Every byte is read from a place of its own: a small source would stay in the cache.
        sources = [torch.ones(shape, dtype=dtype) for shape, dtype in shapes]
        copied, held = timed(partial(copies_of, sources))
        del held, sources
        if repeat:
            morphs.append(seconds)
            copies.append(copied)
            peak = max(peak, highest)
    ratios = [morphed / copied for morphed, copied in zip(morphs, copies, strict=True)]
    return {
        "operation": name,
        "created_mb": created / 1e6,
        "state_mb": total / 1e6,
        "morph_s": statistics.median(morphs),
        "copy_s": statistics.median(copies),
        "ratio": statistics.median(ratios),
        "peak_over_new_state": peak / total,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the benchmark out")
    parser.add_argument("--only", choices=list(OPERATIONS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    config = GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=512) if options.small else GPT2Config()
    config.bos_token_id = config.eos_token_id = config.vocab_size - 1
    if options.only:
        print(json.dumps(measure(options.only, config, options.repeats)))
        return
    print("| operation | created | new state | morph | copying as much | ratio | peak memory / new state |")
    print("|---|---|---|---|---|---|---|")
    for name in OPERATIONS:
        command = [sys.executable, "-m", "benchmarks.morph_cost", "--only", name, "--repeats", str(options.repeats)]
        run = subprocess.run(
            [*command, *(["--small"] if options.small else [])], capture_output=True, text=True, check=True
        )
        row = json.loads(run.stdout.splitlines()[-1])
        print(
            f"| {name} | {row['created_mb']:.0f} MB | {row['state_mb']:.0f} MB | {row['morph_s']:.2f} s | "
            f"{row['copy_s']:.2f} s | {row['ratio']:.2f} | {row['peak_over_new_state']:.2f} |"
        )


if __name__ == "__main__":
    main()
