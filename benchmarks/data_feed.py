"""Tokens per second that the loader feeds, against what the demo model trains on one core.

    python -m benchmarks.data_feed [--rounds 5] [--seconds 2]

Both see the same batches: those of `configs/demo.yaml`, made of generated text, through the loader of a run
(`data.feeding.segment_loader`), in this process, without workers. Training is one bare step of the model and AdamW,
without a Trainer, on one thread. The two alternate, and the ratio is taken round by round.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import TrainingArguments

from benchmarks.data_corpus import paragraphs
from benchmarks.results import Table, add_keep, options_of, publish
from morphing_trainer.cli.arguments import parse
from morphing_trainer.data.cursor import Batch, Cursor
from morphing_trainer.data.feeding import segment_loader
from morphing_trainer.data.making import Making, make_samples
from morphing_trainer.data.orders import order_of
from morphing_trainer.data.request import DEFAULT_BLOCK_SIZE, Mode
from morphing_trainer.data.samples import collate
from morphing_trainer.data.tokenizer import train_tokenizer
from morphing_trainer.models import new_model, scratch_config

DEMO = str(Path(__file__).parents[1] / "configs" / "demo.yaml")
DOCUMENTS, PARAGRAPHS = 1500, 5


def parser() -> argparse.ArgumentParser:
    parser = options_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often all is measured")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help="of the generated text")
    add_keep(parser)
    return parser


def main() -> None:
    options = parser().parse_args()
    torch.set_num_threads(1)
    demo = parse(["--config", DEMO])
    text = paragraphs()
    documents = ["\n\n".join(islice(text, PARAGRAPHS)) for _ in range(options.documents)]
    tokenizer = train_tokenizer(documents[:200], demo.model.vocab_size)
    block_size = demo.data.block_size or DEFAULT_BLOCK_SIZE
    model = new_model(scratch_config(demo.model, len(tokenizer), block_size, tokenizer.eos_token_id), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def train(batch: dict[str, torch.Tensor]) -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    rows: list[list[str]] = []
    modes: tuple[Mode, ...] = ("packing", "continuation")
    with _own_cache():
        for mode in modes:
            samples = make_samples(_rows(documents), Making(tokenizer, mode, block_size))
            rates: list[tuple[float, float]] = []
            for number in range(options.rounds):
                fed = rate(_batches(samples, demo.training, number), lambda batch: None, options.seconds)
                trained = rate(_batches(samples, demo.training, number), train, options.seconds)
                rates.append((fed, trained))
            ratios = [fed / trained for fed, trained in rates]
            fed, trained = (statistics.median(column) for column in zip(*rates, strict=True))
            speeds = [f"{fed:,.0f} tokens/s", f"{trained:,.0f} tokens/s"]
            rows.append([mode, *speeds, f"{statistics.median(ratios):.0f}", f"{min(ratios):.0f} to {max(ratios):.0f}"])
    columns = ["samples", "loader", "demo model, one core", "ratio (median)", "ratio (range)"]
    told = "Tokens that the loader hands out, and that the demo's model trains on, both on one core; medians of "
    publish(Table(columns, rows, f"{told}{options.rounds} rounds."), "benchmarks.data_feed", options.keep)


@contextlib.contextmanager
def _own_cache() -> Iterator[None]:
    """Keep what is made in a folder of this benchmark."""
    before = datasets.config.HF_DATASETS_CACHE
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder)
        try:
            yield
        finally:
            datasets.config.HF_DATASETS_CACHE = before


def _rows(documents: list[str]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": documents})


def _batches(samples: Any, args: TrainingArguments, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """The batches of a run, epoch by epoch, without end."""
    cursor = Cursor(len(samples), seed, arrangement=order_of(samples))
    size = args.train_batch_size
    while True:
        loader, _ = segment_loader(
            samples, collate, cursor, Batch(size, size), args, torch.device("cpu"), preserve_rng=False
        )
        yield from loader
        cursor.next_epoch()


def rate(
    batches: Iterator[dict[str, torch.Tensor]], use: Callable[[dict[str, torch.Tensor]], None], seconds: float
) -> float:
    """Tokens of the batches used in a second, those that only fill up not counted."""
    for batch in islice(batches, 3):
        use(batch)
    start, tokens, passed = time.perf_counter(), 0, 0.0
    while passed < seconds:
        batch = next(batches)
        use(batch)
        mask = batch.get("attention_mask")
        tokens += batch["input_ids"].numel() if mask is None else int(mask.sum())
        passed = time.perf_counter() - start
    return tokens / passed


if __name__ == "__main__":
    main()
