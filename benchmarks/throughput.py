"""Tokens per second: a bare loop, plain `Trainer`, `MorphingTrainer` with an empty schedule, and with one that waits.

    python -m benchmarks.throughput [--pairs 7] [--size 4x128] [--compiled] [--bf16]

All four train the same model on the same samples, in turn and in one process, so that all see the same machine; the
ratios to `Trainer` and to the bare loop are taken round by round. With six rounds or more, the interval behind a ratio
is the one that holds its true median in 95 of 100 such measurements; with fewer it is their range. The first steps of
every run are not counted. The loss curves of the three trainers must be identical (on a GPU, or compiled, the same to
rounding), and the bare loop's must agree with them, or the comparison means nothing.

Sizes are layers x hidden: 4x128 with 8 x 128 tokens a step, 6x384 with 8 x 256, 12x768 (GPT-2 small, with its
vocabulary) with 1 x 256 on a CPU and 8 x 1024 on a GPU. 2x32 has next to nothing to compute, and shows what the loop
itself costs.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import GPT2Config, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from benchmarks import bare_loop
from benchmarks.curves import deviation
from benchmarks.results import Table, add_keep, options_of, publish
from morphing_trainer import MorphingConfig, MorphingTrainer
from morphing_trainer.data.samples import Blocks, collate
from morphing_trainer.models import new_model

WARM_UP = 10
BATCH, LENGTH, VOCABULARY = 8, 128, 2048
RATE = 1e-3
SEED = 42

WAITING: list[dict[str, Any]] = [
    {
        "name": "stack_layers",
        "value": 2,
        "when": {"any": [{"at_tokens": 1e15}, {"all": [{"at_step": 10**9}, {"waited": 10**9}]}]},
    }
]
"""Asked at every step, and never due."""

FEWEST = 6
"""Rounds of which the smallest and the largest ratio enclose the median in 95 of 100 cases."""

CONTESTANTS = ("bare loop", "Trainer", "MorphingTrainer", "MorphingTrainer, waiting")


@dataclass(frozen=True)
class Size:
    """A model and its batch."""

    layers: int
    hidden: int
    batch: int = BATCH
    length: int = LENGTH
    vocabulary: int = VOCABULARY

    def __str__(self) -> str:
        return f"{self.layers} x {self.hidden}, {self.batch} x {self.length} tokens"

    def config(self) -> GPT2Config:
        return GPT2Config(
            n_layer=self.layers,
            n_embd=self.hidden,
            n_head=max(1, self.hidden // (64 if self.hidden >= 384 else 32)),
            vocab_size=self.vocabulary,
            n_positions=self.length,
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,  # who draws when is not what is measured
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )


def sizes() -> dict[str, Size]:
    large = (8, 1024) if torch.cuda.is_available() else (1, 256)
    return {
        "2x32": Size(2, 32, 2, 16, 64),
        "4x128": Size(4, 128),
        "6x384": Size(6, 384, 8, 256, 8192),
        "12x768": Size(12, 768, *large, 50257),
    }


class Stopwatch(TrainerCallback):
    """Seconds from the end of the warm-up to the last step."""

    def __init__(self, warm_up: int = WARM_UP) -> None:
        self.start = self.seconds = 0.0
        self.warm_up = warm_up

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.warm_up or state.global_step == state.max_steps:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            now = time.perf_counter()
            if state.global_step == self.warm_up:
                bare_loop.reset_peak()
                self.start = now
            self.seconds = now - self.start


class Ran(NamedTuple):
    """What came of one run.

    Attributes:
        speed: tokens per second.
        losses: of every tenth step, of the bare loop of every step.
        peak: bytes that a step needs on the GPU at most, model and optimizer included; None on a CPU.
    """

    speed: float
    losses: list[float]
    peak: int | None


def run(
    kind: str,
    model: PreTrainedModel,
    data: Blocks,
    steps: int,
    *,
    batch: int = BATCH,
    warm_up: int = WARM_UP,
    bf16: bool = False,
    compiled: bool = False,
) -> Ran:
    """Train a copy of the model.

    Raises:
        MemoryError: if the batch did not fit, and a trainer has gone on with a smaller one.
    """
    if compiled:  # what was compiled for another run would be made dynamic for this one, and add up in another order
        torch._dynamo.reset()
    model = copy.deepcopy(model)
    held = bare_loop.allocated()
    if kind == "bare loop":
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(SEED)).numpy()
        options: dict[str, Any] = {"batch": batch, "steps": steps, "warm_up": warm_up, "learning_rate": RATE}
        speed, found = bare_loop.train(model, data, order=order, bf16=bf16, compiled=compiled, **options)
        return Ran(speed, found, bare_loop.peak_above(held))
    stopwatch = Stopwatch(warm_up)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        arguments: dict[str, Any] = {
            "weight_decay": 0.0,  # of which the two have other defaults
            "output_dir": folder,
            "max_steps": steps,
            "per_device_train_batch_size": batch,
            "learning_rate": RATE,
            "seed": SEED,
            "logging_steps": min(10, steps),
            "logging_nan_inf_filter": False,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": not torch.cuda.is_available(),
            "bf16": bf16,
            "torch_compile": compiled,
            "disable_tqdm": True,
        }
        common: dict[str, Any] = {"train_dataset": data, "data_collator": collate, "callbacks": [stopwatch]}
        trainer: Any
        if kind == "Trainer":
            trainer = Trainer(model, TrainingArguments(**arguments), **common)
        else:
            schedule = WAITING if kind.endswith("waiting") else []
            trainer = MorphingTrainer(model, MorphingConfig(**arguments), schedule=schedule, **common)
        trainer.train()
    if trainer.args.per_device_train_batch_size != batch:
        raise MemoryError(f"{kind}: a batch of {batch} does not fit")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    speed = (steps - warm_up) * batch * data.block_size / stopwatch.seconds
    return Ran(speed, losses, bare_loop.peak_above(held))


def samples(size: Size, count: int) -> Blocks:
    """Random tokens."""
    generator = torch.Generator().manual_seed(0)
    return Blocks(torch.randint(size.vocabulary, (count, size.length), generator=generator, dtype=torch.int32).numpy())


def adds_up_in_order(compiled: bool) -> bool:
    """Whether a run done again comes to the same bits; a GPU, and compiled code on several threads, need not."""
    return not compiled and not torch.cuda.is_available()


def compare(size: Size, steps: int, rounds: int, warm_up: int, bf16: bool, compiled: bool) -> dict[str, list[float]]:
    """Tokens per second of each contestant, round by round.

    Raises:
        AssertionError: if they have not trained the same.
    """
    model = new_model(size.config(), seed=0)
    data = samples(size, size.batch * steps)
    exact = adds_up_in_order(compiled)
    rounding = 1e-2 if bf16 else 1e-3 if torch.cuda.is_available() else 1e-5
    speeds: dict[str, list[float]] = {kind: [] for kind in CONTESTANTS}
    for turn in range(rounds):
        order = CONTESTANTS if turn % 2 == 0 else CONTESTANTS[::-1]
        losses: dict[str, list[float]] = {}
        for kind in order:
            ran = run(kind, model, data, steps, batch=size.batch, warm_up=warm_up, bf16=bf16, compiled=compiled)
            speeds[kind].append(ran.speed)
            losses[kind] = ran.losses
        far = {kind: deviation(losses[kind], losses["Trainer"], steps) for kind in CONTESTANTS}
        apart = max(far[kind] for kind in CONTESTANTS[1:])
        assert apart <= (0.0 if exact else rounding), "the trainers' loss curves differ"
        assert far["bare loop"] <= rounding, "the bare loop differs"
    return speeds


def around_median(values: Sequence[float]) -> tuple[float, float]:
    """The narrowest pair of values, as far from either end, that encloses the true median in 95 of 100 cases.

    It asks nothing of their distribution: each lies above the true median as often as below. Below `FEWEST` values
    there is none, and it is their range.
    """
    ordered, count = sorted(values), len(values)
    rare = [
        k for k in range(1, count // 2 + 1) if sum(math.comb(count, below) for below in range(k)) <= 0.025 * 2**count
    ]
    most = max(rare, default=1)
    return ordered[most - 1], ordered[-most]


def ratios(speeds: dict[str, list[float]], kind: str, base: str) -> str:
    """Median of the ratio, taken round by round, and an interval around it."""
    if kind == base:
        return "1"
    found = [ours / theirs for ours, theirs in zip(speeds[kind], speeds[base], strict=True)]
    low, high = around_median(found)
    return f"{statistics.median(found):.3f} ({low:.3f} to {high:.3f})"


def parser() -> argparse.ArgumentParser:
    parser = options_of(__doc__)
    parser.add_argument("--pairs", type=int, default=7, help="rounds")
    parser.add_argument("--steps", type=int, default=60, help="steps of every run")
    parser.add_argument("--warm_up", type=int, default=WARM_UP, help="steps that are not counted")
    parser.add_argument("--size", choices=sizes(), default="4x128", help="layers x hidden")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16, instead of float32")
    parser.add_argument("--compiled", action="store_true", help="with torch.compile")
    add_keep(parser)
    return parser


def main() -> None:
    options = parser().parse_args()
    if options.steps <= options.warm_up:
        parser().error(f"--steps: must be above --warm_up, {options.warm_up}, is {options.steps}")
    size = sizes()[options.size]
    speeds = compare(size, options.steps, options.pairs, options.warm_up, options.bf16, options.compiled)
    how = f"{'bf16' if options.bf16 else 'float32'}, {'compiled' if options.compiled else 'eager'}"
    rows = []
    for kind, found in speeds.items():
        speed = statistics.median(found)
        step = f"{1000 * size.batch * size.length / speed:,.1f} ms"
        rows.append([kind, f"{speed:,.0f}", step, *(ratios(speeds, kind, base) for base in CONTESTANTS[1::-1])])
    shown = "95 % intervals" if options.pairs >= FEWEST else "ranges"
    curves = "identical" if adds_up_in_order(options.compiled) else "the same to rounding"
    told = f"Layers x hidden {size}, {how}; medians of {options.pairs} rounds ({shown}); loss curves {curves}."
    columns = ["", "tokens/s", "a step", "to Trainer", "to the bare loop"]
    publish(Table(columns, rows, told), "benchmarks.throughput", options.keep)


if __name__ == "__main__":
    main()
