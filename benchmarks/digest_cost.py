"""What it costs to compare, after a morph, whether all ranks hold the same: hashing everything that was grown.

GPT-2 small (124M parameters) with AdamW state, stacked to twice the depth, in one process. Under several, each hashes
what it holds at the same time, and they exchange 32 bytes.

    python -m benchmarks.digest_cost [--repeats 3] [--small]
"""

from __future__ import annotations

import argparse
import os
import statistics

from transformers import GPT2Config

from benchmarks.morph_cost import starting_point, timed
from benchmarks.results import Table, add_keep, options_of, publish
from morphing_trainer import morph
from morphing_trainer.engine import states_by_name
from morphing_trainer.run.digest import digest, parts_of

OPERATION = {"name": "stack_layers", "value": 2}


def parser() -> argparse.ArgumentParser:
    parser = options_of(__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="how often each is measured")
    parser.add_argument("--small", action="store_true", help="a model of 0.1M parameters, to try it out")
    add_keep(parser)
    return parser


def main() -> None:
    options = parser().parse_args()
    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=512) if options.small else GPT2Config()
    model, optimizer = starting_point(config, [])
    morphs, digests, size = [], [], 0
    for repeat in range(options.repeats + 1):  # the first one warms up
        seconds, grown = timed(lambda: morph(model, OPERATION, optimizer=optimizer))
        states = states_by_name(grown.model, grown.optimizer)
        parts = parts_of(grown.model.named_parameters(), states)
        size = sum(value.nbytes for value in parts.values())
        hashed, _ = timed(lambda held=parts: digest(held))  # type: ignore[misc]
        if repeat:
            morphs.append(seconds)
            digests.append(hashed)
        del grown, states, parts
    morphed, hashed = statistics.median(morphs), statistics.median(digests)
    row = ["`stack_layers` 2", f"{morphed:.2f} s", f"{size / 1e9:.2f} GB", f"{hashed:.2f} s"]
    row += [f"{size / 1e9 / hashed:.2f} GB/s", f"{hashed / morphed:.2f}"]
    told = f"{'A tiny GPT-2' if options.small else 'GPT-2 small'} with AdamW state, stacked to twice the depth in one "
    told += f"process on {os.cpu_count()} cores; medians of {options.repeats}."
    columns = ["operation", "morph", "held", "digest of it", "speed", "digest / morph"]
    publish(Table(columns, [row], told), "benchmarks.digest_cost", options.keep)


if __name__ == "__main__":
    main()
