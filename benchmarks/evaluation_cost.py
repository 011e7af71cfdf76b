"""Time of an evaluation with all metrics and the shown example, against one that computes the loss alone.

    python -m benchmarks.evaluation_cost [--pairs 7] [--batches 50] [--layers 4 --hidden 128 --vocabulary 2048]

Both are made in turn by one process, on the same model and samples, and the ratio is taken pair by pair. Without a GPU
it is processor time, which says the same on a machine that has other work. The losses must be identical, or the
comparison means nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import tempfile
import time
from typing import Any

import torch
from transformers import GPT2Config

from benchmarks.results import Table, add_keep, options_of, publish
from morphing_trainer import MorphingConfig, MorphingTrainer
from morphing_trainer.data.samples import Blocks, collate
from morphing_trainer.data.tokenizer import train_tokenizer
from morphing_trainer.models import new_model
from morphing_trainer.validation.names import METRICS

BATCH, LENGTH = 8, 128
KINDS: dict[str, tuple[list[str], bool]] = {
    "loss alone": ([], False),
    "perplexity and token accuracy": (["perplexity", "token_accuracy"], False),
    "all metrics": (list(METRICS), False),
    "all metrics and the example": (list(METRICS), True),
}


def words(count: int, kinds: int) -> str:
    """Text of `count` words, of `kinds` different ones."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    known = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(kinds)]
    return " ".join(draw.choices(known, k=count))


def evaluate(trainer: MorphingTrainer, metrics: list[str], example: bool) -> tuple[float, float]:
    """Seconds and loss of one evaluation."""
    trainer.args.eval_metrics, trainer.args.eval_example = metrics, example
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    loss = trainer.evaluate()["eval_loss"]  # read from the device, so that all of it is over
    return clock() - start, loss


def parser() -> argparse.ArgumentParser:
    parser = options_of(__doc__)
    parser.add_argument("--pairs", type=int, default=7, help="how often each pair is measured")
    parser.add_argument("--batches", type=int, default=50, help="of each evaluation")
    parser.add_argument("--layers", type=int, default=4, help="blocks of the model")
    parser.add_argument("--hidden", type=int, default=128, help="its width")
    parser.add_argument("--vocabulary", type=int, default=2048, help="tokens that it knows")
    add_keep(parser)
    return parser


def main() -> None:
    options = parser().parse_args()
    tokenizer = train_tokenizer([words(20_000, 5_000)], min(options.vocabulary, 8192))
    config = GPT2Config(
        n_layer=options.layers,
        n_embd=options.hidden,
        n_head=max(1, options.hidden // 32),
        vocab_size=max(options.vocabulary, len(tokenizer)),
        n_positions=LENGTH,
        activation_function="gelu_pytorch_tanh",
        bos_token_id=0,
        eos_token_id=0,
    )
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH * options.batches, LENGTH)
    data = Blocks(torch.randint(1, len(tokenizer), shape, generator=generator, dtype=torch.int32).numpy())
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        arguments: dict[str, Any] = {
            "output_dir": folder,
            "per_device_eval_batch_size": BATCH,
            "report_to": "none",
            "use_cpu": not torch.cuda.is_available(),
        }
        trainer = MorphingTrainer(
            new_model(config, seed=0),
            MorphingConfig(**arguments),
            train_dataset=data,
            eval_dataset=data,
            data_collator=collate,
            processing_class=tokenizer,
        )
        with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
            trainer.display.console.quiet = True
            for pair in range(options.pairs + 1):
                order = list(KINDS) if pair % 2 == 0 else list(reversed(KINDS))
                results = {kind: evaluate(trainer, *KINDS[kind]) for kind in order}
                assert len({loss for _, loss in results.values()}) == 1, "the losses differ"
                for kind, (seconds, _) in results.items():
                    times[kind] += [seconds] if pair else []  # the first round is a warm-up
    plain = times["loss alone"]
    rows = []
    for kind, all_seconds in times.items():
        ratios = [ours / theirs for ours, theirs in zip(all_seconds, plain, strict=True)]
        time_ = f"{1000 * statistics.median(all_seconds):,.0f} ms"
        rows.append([kind, time_, f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f} to {max(ratios):.3f}"])
    told = f"{options.layers} x {options.hidden}, vocabulary {config.vocab_size:,}, {options.batches} batches of "
    told += f"{BATCH} x {LENGTH} tokens; medians of {options.pairs} rounds, "
    told += f"{'' if torch.cuda.is_available() else 'processor time, '}the losses identical."
    columns = ["evaluation", "time (median)", "ratio (median)", "ratio (range)"]
    publish(Table(columns, rows, told), "benchmarks.evaluation_cost", options.keep)


if __name__ == "__main__":
    main()
