"""Train what an experiment has not trained yet, one run after the other; a run that was stopped goes on where it was.

    python -m benchmarks.growth.run [--experiment benchmarks/growth/small.yaml] [--text FILE] [--only WORDS] [--seeds 0]

Each run leaves its losses and floating-point operations in benchmarks/growth/results/EXPERIMENT/NAME-SEED.json;
`python -m benchmarks.growth.page` makes tables and pictures of them. FLOPs are those of forward and backward passes as
torch's counter counts them, embeddings and head included, phase by phase. Seconds are processor time of the training
steps, which other work on the machine changes less than time on the clock. Started several times, it trains as many
runs side by side (with OMP_NUM_THREADS=1, one on each core).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from transformers import GPT2Config

from benchmarks.flops import run_flops
from benchmarks.growth.experiment import Experiment, Variant, described, load, variants
from benchmarks.growth.meter import Meter
from benchmarks.growth.reading import read_result
from benchmarks.results import versions
from morphing_trainer import MorphingConfig, MorphingTrainer
from morphing_trainer.data.samples import Blocks, collate
from morphing_trainer.models import new_model
from morphing_trainer.reporting.run_data import AXES
from morphing_trainer.run.contestants import contestants
from morphing_trainer.run.history import write_whole
from morphing_trainer.run.signals import RunInterrupted

HERE = Path(__file__).parent
RESULTS = HERE / "results"
HELD_OUT = 0.1
EVALUATIONS = 20


def data_of(text: str, block_size: int) -> tuple[Blocks, Blocks, int]:
    """Characters as tokens, in blocks: to train on, and the last tenth to evaluate; the size of the vocabulary."""
    letters = sorted(set(text))
    codes = {letter: code for code, letter in enumerate(letters)}
    tokens = np.fromiter((codes[letter] for letter in text), np.uint16, len(text))
    cut = int(len(tokens) * (1 - HELD_OUT))
    training, validation = (
        Blocks(part[: len(part) // block_size * block_size].reshape(-1, block_size))
        for part in (tokens[:cut], tokens[cut:])
    )
    return training, validation, len(letters)


def train(experiment: Experiment, variant: Variant, seed: int, text: str, folder: Path) -> dict[str, Any]:
    """Train one variant in `folder`, going on from its newest checkpoint if there is one. Returns what came out."""
    training, validation, vocabulary = data_of(text, experiment.block_size)
    config = GPT2Config(
        n_layer=variant.shape.layers,
        n_embd=variant.shape.hidden,
        n_head=variant.shape.heads,
        n_inner=variant.shape.mlp,
        vocab_size=vocabulary,
        n_positions=experiment.block_size,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    decay = round(experiment.decay_share * variant.steps)
    meter = Meter(folder / "seconds.json")
    trainer = MorphingTrainer(
        new_model(config, seed=seed),
        MorphingConfig(
            str(folder),
            seed=seed,
            max_steps=variant.steps,
            per_device_train_batch_size=variant.batch_size,
            per_device_eval_batch_size=4 * experiment.batch_size,
            learning_rate=variant.learning_rate,
            warmup_steps=experiment.warmup_steps,
            lr_scheduler_type="warmup_stable_decay",
            lr_scheduler_kwargs={"num_decay_steps": decay},
            eval_strategy="steps",
            eval_steps=max(1, variant.steps // EVALUATIONS),
            eval_iters=5,
            logging_steps=max(1, variant.steps // EVALUATIONS),
            save_strategy="steps",
            save_steps=max(100, variant.steps // 5),
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
        ),
        train_dataset=training,
        eval_dataset=validation,
        data_collator=collate,
        schedule=variant.schedule,
        callbacks=[meter],
    )
    trainer.train("auto")
    trainer.args.eval_iters = None
    loss = float(trainer.evaluate()["eval_loss"])
    return {
        **described(experiment, variant),
        "seed": seed,
        "versions": versions(),
        "loss": round(loss, 5),
        "flops": run_flops(folder, experiment.block_size),
        "seconds": round(meter.seconds[variant.steps], 1),
        "curve": curve(folder, meter),
    }


def told(file: Path | None, text: str) -> dict[str, Any]:
    """What tells one text from another."""
    name = file.name if file else "Python's language reference"
    return {"name": name, "characters": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def curve(folder: Path, meter: Meter) -> list[list[float]]:
    """[FLOPs, seconds, loss] of every evaluation, on a part of the validation text."""
    (run,), _, _ = contestants([str(folder)], flops=True)
    losses, steps = run.points("eval_loss", AXES["flops"]), run.points("eval_loss", AXES["steps"])
    return [
        [float(f"{flops:.4e}"), round(meter.seconds[round(step)], 1), round(loss, 4)]
        for (flops, loss), (step, _) in zip(losses, steps, strict=True)
    ]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--experiment", type=Path, default=HERE / "small.yaml", help="YAML; default: small.yaml")
    parser.add_argument("--text", type=Path, help="a text file; default: the language reference that comes with Python")
    parser.add_argument("--only", default="", help="variants whose name holds these words")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: those of the experiment")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/growth"), help="folder for the runs themselves; default: runs/growth"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder for what comes out; default: benchmarks/growth/results"
    )
    return parser


def main() -> None:
    options = parser().parse_args()
    try:
        experiment = load(options.experiment)
        text = options.text.read_text(encoding="utf-8") if options.text else reference()
        check(options, experiment, text)
        train_missing(options, experiment, text)
    except (OSError, ValueError) as error:  # of files that are not there, or not what they should be
        parser().error(str(error))
    except RunInterrupted as interruption:
        print(f"{interruption}; the same command goes on from there", file=sys.stderr)
        raise


def reference() -> str:
    """The language reference that comes with Python."""
    return "\n".join(topics[name] for name in sorted(topics))


def check(options: argparse.Namespace, experiment: Experiment, text: str) -> None:
    """Refuse what cannot be trained, or would train nothing that a table shows.

    Raises:
        ValueError: saying what there is.
    """
    names = [variant.name for variant in variants(experiment)]
    if not any(options.only in name for name in names):
        raise ValueError(f"--only {options.only!r}: no run is called so; they are {'; '.join(names)}")
    if unknown := sorted(set(options.seeds or ()) - set(experiment.seeds)):
        raise ValueError(f"--seeds {unknown}: {options.experiment} has {experiment.seeds}")
    if len(text) * HELD_OUT < experiment.block_size:
        raise ValueError(
            f"--text {options.text}: {len(text):,} characters are too few; the last tenth, which is held out, must "
            f"make a sample of {experiment.block_size}"
        )


def train_missing(options: argparse.Namespace, experiment: Experiment, text: str) -> None:
    """Train what there is no result of, one after the other; tell what there is in the end.

    Raises:
        ValueError: if a result is of another run.
    """
    there, elsewhere = 0, []
    facts = told(options.text, text)
    results = options.results / experiment.name
    results.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds or experiment.seeds:
        for variant in variants(experiment):
            path = results / f"{variant.file}-{seed}.json"
            if options.only not in variant.name:
                continue
            if path.exists():
                read_result(path, {**described(experiment, variant), "seed": seed, "text": facts})
                there += 1
                continue
            folder = options.runs / experiment.name / path.stem
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(f"{folder}.lock", timeout=0):
                    if path.exists():  # another process has trained it in this moment
                        there += 1
                        continue
                    found = {**train(experiment, variant, seed, text, folder), "text": facts}
                    write_whole(path, json.dumps(found) + "\n")
            except Timeout:
                elsewhere.append(f"{variant.name}, seed {seed}")
                continue
            there += 1
            spent = found["flops"] / 1e12
            print(f"{variant.name}, seed {seed}: loss {found['loss']:.4f}, {spent:.3g} TFLOP", flush=True)
    others = f"; others train {'; '.join(elsewhere)}" if elsewhere else ""
    print(f"{there} of the runs asked for are in {results}{others}; growth.page, with the same --results, shows them")


if __name__ == "__main__":
    main()
