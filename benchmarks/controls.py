"""The demo against two controls at equal training FLOPs: its first model never grown, its last trained from the start.

    python -m benchmarks.controls [--seeds 42 43 44]

Controls are the demo's own config without its schedule, each with as many steps as spend the demo's FLOPs, so its
learning rate decays to the end too. FLOPs are counted by what runs (see `flops.py`); an epoch is cut where they are
spent. The last evaluation reads the whole validation set in all three.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.flops import run_flops, training_flops
from benchmarks.results import Table, add_keep, options_of, publish
from morphing_trainer.cli.arguments import parse
from morphing_trainer.cli.train import train
from morphing_trainer.run.journal import effective, read_journal

CONFIG = "configs/demo.yaml"


def trained(folder: Path, *options: str, grows: bool) -> tuple[float, list[dict[str, Any]]]:
    """Loss on the whole validation set, and the journal."""
    arguments = parse(["--config", CONFIG, "--output_dir", str(folder), "--save_strategy", "no", *options])
    if not grows:
        arguments.training.scaling_schedule_file = None
    trainer = train(arguments)
    trainer.args.eval_iters = None
    return float(trainer.evaluate()["eval_loss"]), effective(read_journal(folder / "journal.jsonl"))


def compare(seed: int, folder: Path, extra: list[str]) -> list[tuple[str, float, int, int]]:
    """(name, loss, FLOPs, steps) of the demo and of both controls."""
    block_size = parse(["--config", CONFIG, *extra]).data.block_size
    assert block_size is not None, f"{CONFIG} gives it"
    options = ["--seed", str(seed), *extra]
    loss, journal = trained(folder / "demo", *options, grows=True)
    budget = run_flops(folder / "demo", block_size)
    first, last = journal[0], journal[-1]
    rows = [("the demo: grown while it trains", loss, budget, int(last["step"]))]
    samples = first["settings"]["batch_size"] * first["settings"]["grad_accum"]
    for name, spec in (
        ("its first model, never grown", first["spec"]),
        ("its last model, from the start", last["spec"]),
    ):
        steps = round(budget / (samples * training_flops(spec, block_size)))
        shape = {field: spec["config"][field] for field in ("n_layer", "n_inner")}
        given = [text for field, value in shape.items() for text in (f"--{field}", str(value))]
        loss, _ = trained(folder / name[:9], *options, *given, "--max_steps", str(steps), grows=False)
        rows.append((name, loss, run_flops(folder / name[:9], block_size), steps))
    return rows


def parser() -> argparse.ArgumentParser:
    parser = options_of(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44], help="of the runs")
    add_keep(parser)
    return parser


def main() -> None:
    options, extra = parser().parse_known_args()
    results: dict[str, list[tuple[float, int, int]]] = {}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            for name, loss, flops, steps in compare(seed, Path(folder), extra):
                results.setdefault(name, []).append((loss, flops, steps))
    rows = []
    for name, runs in results.items():
        losses = [loss for loss, _, _ in runs]
        mean = f"{statistics.mean(losses):.3f}"
        tflops = statistics.mean(flops for _, flops, _ in runs) / 1e12
        steps = round(statistics.mean(steps for _, _, steps in runs))
        rows.append([name, mean, f"{min(losses):.3f} to {max(losses):.3f}", f"{tflops:.2f}", str(steps)])
    told = f"Loss on the whole validation set after equal training FLOPs, {len(options.seeds)} seeds."
    columns = ["run", f"final loss, mean of {len(options.seeds)} seeds", "range", "TFLOP", "steps"]
    publish(Table(columns, rows, told), "benchmarks.controls", options.keep)


if __name__ == "__main__":
    main()
