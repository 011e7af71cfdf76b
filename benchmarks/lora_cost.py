"""What a rank change or a merge costs, in training steps of the same run.

GPT-2 small (124M parameters) with adapters of rank 8 on every attention trains on batches of 8 x 256 tokens; between
steps, ranks change and adapters are merged. The time of an operation is that of its record: the whole change,
re-preparation included. The time of a step is the median of the run's steps, the first two aside.

    python -m benchmarks.lora_cost [--small]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
from transformers import GPT2Config, TrainerCallback

from benchmarks.results import Table, add_keep, options_of, publish
from morphing_trainer import LoraArguments, MorphingConfig, MorphingTrainer, add_adapters
from morphing_trainer.models import new_model
from morphing_trainer.reporting.records import Record

OPERATIONS: list[dict[str, Any]] = [
    {"name": "decrease_attn_lora_scaling", "value": 2, "desc": "rank 8 -> 16"},
    {"name": "decrease_attn_lora_scaling", "value": 0.25, "desc": "rank 16 -> 4, the rest merged"},
    {"name": "merge_lora_weights", "value": None, "desc": "merge and start anew"},
    {"name": "change_lora_alpha", "value": 2, "compensate": True, "desc": "alpha x 2"},
    {"name": "merge_lora_weights", "value": None, "restart": False, "desc": "merge and remove"},
    {"name": "set_attn_lora_rank", "value": 8, "desc": "new adapters of rank 8"},
]


class Clock(TrainerCallback):
    """Seconds of every optimizer step, and of every operation between them."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.operations: list[float] = []
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(time.perf_counter() - self._began)

    def on_operation(self, args: Any, state: Any, control: Any, record: Record, **kwargs: Any) -> None:
        self.operations.append(record.seconds)


class Tokens(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """(count, length) random tokens."""

    def __init__(self, count: int, length: int, vocab: int) -> None:
        self.tokens = torch.randint(vocab, (count, length), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def parser() -> argparse.ArgumentParser:
    parser = options_of(__doc__)
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the benchmark out")
    add_keep(parser)
    return parser


def main() -> None:
    options = parser().parse_args()
    config = GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=512) if options.small else GPT2Config()
    config.bos_token_id = config.eos_token_id = config.vocab_size - 1
    batch, length = (2, 32) if options.small else (8, 256)
    model = add_adapters(new_model(config, seed=0), LoraArguments(attn_lora_rank_divisor=config.n_embd // 8))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = MorphingConfig(
            folder,
            max_steps=len(OPERATIONS) + 4,
            per_device_train_batch_size=batch,
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
        )
        waits = [2, *[1] * (len(OPERATIONS) - 1)]
        schedule = [{**operation, "max_wait_iters": wait} for operation, wait in zip(OPERATIONS, waits, strict=True)]
        trainer = MorphingTrainer(
            model,
            args,
            train_dataset=Tokens(batch * args.max_steps, length, config.vocab_size),
            schedule=schedule,
            callbacks=[clock],
        )
        trainer.train()
    step = statistics.median(clock.steps[2:])
    rows = [
        [f"`{operation['name']}`", operation["desc"], f"{seconds:.2f} s", f"{seconds / step:.2f}"]
        for operation, seconds in zip(OPERATIONS, clock.operations, strict=True)
    ]
    told = (
        f"{'A tiny GPT-2' if options.small else 'GPT-2 small'} with adapters of rank 8 on every attention; a training "
    )
    told += f"step of the same run, {batch} x {length} tokens, takes {step:.2f} s."
    publish(Table(["operation", "does", "time", "training steps"], rows, told), "benchmarks.lora_cost", options.keep)


if __name__ == "__main__":
    main()
