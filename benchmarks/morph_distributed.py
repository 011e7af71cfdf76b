"""What a morph costs several processes: seconds, bytes that pass between them, and peak memory of each.

GPT-2 small (124M parameters) with AdamW state on two CPU processes over gloo, under DDP and under FSDP2.

    python -m benchmarks.morph_distributed [--processes 2] [--repeats 3] [--small]

Every operation is applied to a `MorphingTrainer` after one optimizer step, as in a run: grow, agree, prepare with
Accelerate, install the optimizer's state. Seconds are the slowest process's, medians over the repeats; `copying` is
the time to allocate and copy, in the same process, as many bytes as the operation made there. Bytes moved are those of
the tensors that FSDP2 gathers, or that DDP sends from rank 0 when it wraps the new model.

Peak memory is the highest resident set during the operation, without what the process held besides the run's state
before it (Linux). The bound is what the process keeps of the old and of the new state, and the largest tensor as a
whole; a process that kept the whole state of old and new would need `full`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import GPT2Config

from benchmarks.morph_cost import copies_of, reset_peak, resident, settle, timed
from benchmarks.results import Table, add_keep, options_of, publish
from morphing_trainer import MorphingConfig, MorphingTrainer
from morphing_trainer.models import new_model
from morphing_trainer.operations import ArchitectureOperation
from morphing_trainer.run.applying import bare_optimizer, transplant
from morphing_trainer.schedule import Schedule
from morphing_trainer.sharding import local_part

OPERATIONS: list[dict[str, Any]] = [
    {"name": "stack_layers", "value": 2},
    {"name": "widen_mlp", "value": 2},
    {"name": "set_attn_lora_rank", "value": 16},
    {"name": "set_attn_lora_rank", "value": 8},
    {"name": "merge_lora_weights", "value": None, "restart": False},
    {"name": "freeze_layer", "value": "h.0"},
]


PLAIN = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
"""What is freed goes back to the system at once. Otherwise glibc keeps it, up to a fifth of what was in use, and the
resident set would tell of the allocator."""


class Sample(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """A few short samples: the state counts here, not the step."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.arange(index, index + 16)
        return {"input_ids": tokens, "labels": tokens}


class Gathered:
    """Counts the bytes of the tensors that are gathered from shards."""

    def __init__(self) -> None:
        self.bytes = 0
        real = DTensor.full_tensor

        def counting(tensor: DTensor, **options: Any) -> torch.Tensor:
            self.bytes += tensor.element_size() * math.prod(tensor.shape)
            found: torch.Tensor = real(tensor, **options)
            return found

        DTensor.full_tensor = counting  # type: ignore[method-assign, assignment]


def state_of(trainer: MorphingTrainer) -> list[torch.Tensor]:
    """All weights and all optimizer state, sharded or not."""
    found: list[torch.Tensor] = [parameter.detach() for parameter in trainer.bare_model.parameters()]
    for state in bare_optimizer(trainer).state.values():
        found += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return found


def local_bytes(tensors: list[torch.Tensor]) -> dict[int, int]:
    """Storage address -> bytes of what this process keeps."""
    kept = [local_part(tensor) for tensor in tensors]
    return {tensor.data_ptr(): tensor.nbytes for tensor in kept if tensor.numel()}


def whole_sizes(tensors: list[torch.Tensor]) -> list[int]:
    return [tensor.element_size() * math.prod(tensor.shape) for tensor in tensors]


def rank_main(way: str, config: GPT2Config, folder: str) -> None:
    """One process: apply all operations, and print what each has cost the slowest or largest of them."""
    torch.set_num_threads(1)
    gathered = Gathered()
    args = MorphingConfig(
        folder, max_steps=1, per_device_train_batch_size=1, save_strategy="no", report_to="none", disable_tqdm=True,
        use_cpu=True, ddp_backend="gloo",
    )  # fmt: skip
    trainer = MorphingTrainer(new_model(config, seed=0), args, train_dataset=Sample())
    trainer.train()
    assert trainer.session is not None
    rows = []
    for index, written in enumerate(OPERATIONS):
        operation = Schedule.of([{**written, "trigger_loss": 0, "max_wait_iters": 0}]).entries[0].operation
        assert isinstance(operation, ArchitectureOperation)
        old = state_of(trainer)
        before, sizes = local_bytes(old), whole_sizes(old)
        settle()
        floor = resident("VmRSS") - sum(before.values())
        gathered.bytes = 0
        reset_peak()
        dist.barrier()
        seconds, _ = timed(partial(transplant, trainer, trainer.session.state, operation, index))
        peak = resident("VmHWM") - floor
        new = state_of(trainer)
        after, new_sizes = local_bytes(new), whole_sizes(new)
        made = {address: count for address, count in after.items() if address not in before}
        sent = sum(whole_sizes([p.detach() for p in trainer.bare_model.parameters()])) if way == "ddp" else 0
        del old, new
        settle()
        copied, held = timed(partial(copies_of, [torch.ones(count // 4) for count in made.values()]))
        del held
        bound = sum(before.values()) + sum(made.values()) + max(sizes + new_sizes)
        mine = [seconds, copied, peak, bound, gathered.bytes or sent, sum(made.values())]
        found = [torch.empty(len(mine), dtype=torch.float64) for _ in range(dist.get_world_size())]
        dist.all_gather(found, torch.tensor(mine, dtype=torch.float64))
        most = torch.stack(found).amax(0).tolist()
        full = sum(sizes) + sum(new_sizes)
        rows.append(dict(zip(("seconds", "copied", "peak", "bound", "moved", "made"), most, strict=True), full=full))
    if dist.get_rank() == 0:
        print(json.dumps(rows), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def launched(way: str, processes: int, small: bool) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command += ["-m", "benchmarks.morph_distributed", "--rank-of", way, "--folder", folder]
        done = subprocess.run(
            [*command, *(["--small"] if small else [])],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **PLAIN, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        )
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    rows: list[dict[str, float]] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[{")))
    return rows


def parser() -> argparse.ArgumentParser:
    parser = options_of(__doc__)
    parser.add_argument("--processes", type=int, default=2, help="that share the run")
    parser.add_argument("--repeats", type=int, default=3, help="how often each is measured")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the benchmark out")
    parser.add_argument("--rank-of", choices=["ddp", "fsdp2"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    add_keep(parser)
    return parser


def main() -> None:
    options = parser().parse_args()
    config = GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=512) if options.small else GPT2Config()
    config.bos_token_id = config.eos_token_id = config.vocab_size - 1
    if options.rank_of:
        if options.rank_of == "fsdp2":
            from tests.sharded import sharded

            sharded()
        rank_main(options.rank_of, config, options.folder)
        return
    table = []
    for way in ("ddp", "fsdp2"):
        runs = [launched(way, options.processes, options.small) for _ in range(options.repeats)]
        for number, operation in enumerate(OPERATIONS):
            rows = [run[number] for run in runs]
            row = {key: statistics.median(each[key] for each in rows) for key in rows[0]}
            words = " ".join(str(part) for part in (operation["name"], operation["value"]) if part is not None)
            cells = [way, words, *(f"{row[key] / 1e6:.0f} MB" for key in ("made", "moved"))]
            cells += [f"{row[key]:.2f} s" for key in ("seconds", "copied")]
            cells += [f"{row[key] / 1e6:.0f} MB" for key in ("peak", "bound")]
            cells += [f"{row['peak'] / row['bound']:.2f}", f"{row['full'] / 1e6:.0f} MB"]
            table.append(cells)
    columns = ["way", "operation", "made", "moved", "morph", "copying as much", "peak", "bound", "peak / bound", "full"]
    model = "A tiny GPT-2" if options.small else "GPT-2 small"
    told = f"{model} with AdamW state on {options.processes} CPU processes over gloo; the slowest and the largest of "
    told += f"them, medians of {options.repeats}."
    publish(Table(columns, table, told), "benchmarks.morph_distributed", options.keep)


if __name__ == "__main__":
    main()
