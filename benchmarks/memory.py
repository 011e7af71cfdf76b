"""Peak memory of a training step against plain `Trainer`, of a save and of a morph against what is there before them.

    python -m benchmarks.memory [--layers 12 --hidden 768 --vocabulary 50257 --length 1024 --batch 1] [--bf16]

On a CPU, what torch's allocator hands out and takes back is added up from its own events, from the making of the model
on: weights, gradients, moments, activations and temporaries, to the byte. The pages of the process are no measure of
that: they depend on what its libraries hold and on what freed memory its C library keeps. On a GPU the allocator counts
by itself. Every contestant is a process of its own; the first step is not counted, as it makes the moments. The losses
of the two trainers must be the same.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, Trainer, TrainerCallback, TrainingArguments

from benchmarks.allocations import Meter, Span
from benchmarks.arrival import Arrived
from benchmarks.results import Table, add_keep, options_of, publish
from morphing_trainer import MorphingConfig, MorphingTrainer
from morphing_trainer.data.samples import Blocks, collate
from morphing_trainer.models import new_model

MORPHS: dict[str, dict[str, Any]] = {
    "stack_layers 2": {"name": "stack_layers", "value": 2},
    "widen_mlp 2": {"name": "widen_mlp", "value": 2},
}
CONTESTANTS = ("Trainer", "MorphingTrainer", *MORPHS)
STEPS = 2


class Marks(TrainerCallback):
    """Ends a stretch with every step, and the run before step `last` + 1."""

    def __init__(self, meter: Meter, last: int) -> None:
        self.meter, self.last = meter, last

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.last:
            raise Arrived

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.meter.mark("step" if state.global_step > 1 else "first step")


class MarkedTrainer(Trainer):
    meter: Meter

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.meter.mark("before")
        super()._save_checkpoint(model, trial)
        self.meter.mark("save")


class MarkedMorphing(MorphingTrainer):
    meter: Meter

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.meter.mark("before")
        super()._save_checkpoint(model, trial)
        self.meter.mark("save")

    def _apply_due(self, *arguments: Any) -> None:
        self.meter.mark("before")
        super()._apply_due(*arguments)
        self.meter.mark("morph")


def measure(kind: str, options: argparse.Namespace) -> tuple[dict[str, Span], list[float]]:
    """Memory of one contestant in this process, by stretch of its run, and its losses.

    Args:
        kind: of `CONTESTANTS`. A morph follows upon the first step.
    """
    last = 1 if kind in MORPHS else STEPS
    arguments: dict[str, Any] = {
        "max_steps": last + 1,
        "per_device_train_batch_size": options.batch,
        "weight_decay": 0.0,  # of which the two have other defaults
        "logging_steps": 1,
        "save_strategy": "no" if kind in MORPHS else "steps",
        "save_steps": STEPS,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": options.bf16,
    }
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch * (last + 1), options.length)
    tokens = torch.randint(options.vocabulary, shape, generator=generator, dtype=torch.int32)
    common: dict[str, Any] = {"train_dataset": Blocks(tokens.numpy()), "data_collator": collate}
    meter = Meter()
    trainer: Any
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        stack.enter_context(meter.measuring())
        model = new_model(config(options), seed=0)
        common["callbacks"] = [Marks(meter, last)]
        if kind == "Trainer":
            trainer = MarkedTrainer(model, TrainingArguments(folder, **arguments), **common)
        else:
            schedule = [{**MORPHS[kind], "when": {"at_step": 1}}] if kind in MORPHS else []
            trainer = MarkedMorphing(model, MorphingConfig(folder, **arguments), schedule=schedule, **common)
        del model
        trainer.meter = meter
        with contextlib.suppress(Arrived):
            trainer.train()
    return meter.spans, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def config(options: argparse.Namespace) -> GPT2Config:
    return GPT2Config(
        n_layer=options.layers,
        n_embd=options.hidden,
        n_head=max(1, options.hidden // 64),
        vocab_size=options.vocabulary,
        n_positions=options.length,
        activation_function="gelu_pytorch_tanh",
        bos_token_id=0,
        eos_token_id=0,
    )


def compare(options: argparse.Namespace) -> dict[str, dict[str, Span]]:
    """The stretches of every contestant, each in a new process.

    Raises:
        AssertionError: if the trainers have not trained the same.
    """
    found, losses = {}, {}
    for kind in CONTESTANTS:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found[kind], losses[kind] = process.submit(measure, kind, options).result()
    assert len(losses["Trainer"]) == STEPS
    assert losses["MorphingTrainer"] == losses["Trainer"], f"the trainers' losses differ: {losses}"
    return found


def table(found: Mapping[str, Mapping[str, Span]], options: argparse.Namespace) -> Table:
    rows = []
    for what in ("step", "save"):
        theirs = found["Trainer"][what]
        for kind in ("Trainer", "MorphingTrainer"):
            ours = found[kind][what]
            rows.append([f"{what}, {kind}", *row(ours), f"{ours.peak / theirs.peak:.3f}"])
    rows += [[f"`{kind}`", *row(found[kind]["morph"]), "-"] for kind in MORPHS]
    told = (
        f"{options.layers} x {options.hidden}, vocabulary of {options.vocabulary:,}, AdamW, {options.batch} x "
        f"{options.length} tokens, {'bf16' if options.bf16 else 'float32'}; bytes that torch has allocated."
    )
    return Table(["", "before", "peak", "after", "peak / before", "peak / Trainer's"], rows, told)


def row(span: Span) -> list[str]:
    return [
        *(f"{size / 1e6:,.0f} MB" for size in (span.before, span.peak, span.after)),
        f"{span.peak / span.before:.2f}",
    ]


def parser() -> argparse.ArgumentParser:
    parser = options_of(__doc__)
    parser.add_argument("--layers", type=int, default=12, help="blocks of the model")
    parser.add_argument("--hidden", type=int, default=768, help="its width")
    parser.add_argument("--vocabulary", type=int, default=50257, help="tokens that it knows")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a sample")
    parser.add_argument("--batch", type=int, default=1, help="samples of a step")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16, instead of float32")
    add_keep(parser)
    return parser


def main() -> None:
    options = parser().parse_args()
    publish(table(compare(options), options), "benchmarks.memory", options.keep)


if __name__ == "__main__":
    main()
