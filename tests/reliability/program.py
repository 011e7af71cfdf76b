"""One small run with all that a save holds, in a process of its own, that may be made to fail."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from morphing_trainer import LoraArguments, MorphingTrainer, add_adapters
from morphing_trainer.errors import MorphError
from tests.reliability.faults import Faults, How
from tests.support import Tokens, losses, tiny_model, trainer, weights
from tests.trainer.common import DROPOUT, entry, optimizer_state

SCHEDULE = [entry("stack_layers", 2, 1), entry("set_attn_lora_rank", 3, 2), entry("freeze_layer", "wpe", 1)]
OPTIONS: dict[str, Any] = {
    "max_steps": 4,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "eval_steps": 2,
    "analysis_evals": 1,
    "disable_tqdm": True,
}


@dataclass(frozen=True)
class Crash:
    """What to run, and where it fails.

    Attributes:
        folder: of the run. What it tells is left in `<folder>.json`.
        resume: `resume_from_checkpoint`; "if possible" is True if there is a checkpoint, and a fresh start otherwise.
        at, how: of `Faults`; `at` None counts, and -1 does not even that.
        options: training arguments that differ from `OPTIONS`.
    """

    folder: Path
    resume: bool | str = False
    at: int | None = -1
    how: How = "error"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def report(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.report.read_text())
        return found


def digest(made: MorphingTrainer) -> str:
    """Of all that a failure must leave as it was: weights, optimizer, learning-rate schedule, random numbers."""
    found = hashlib.sha256()
    for name, tensor in {**weights(made), **optimizer_state(made)}.items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.contiguous().numpy().tobytes())
    schedule = {key: value for key, value in made.lr_scheduler.state_dict().items() if key != "lr_lambdas"}
    found.update(repr(schedule).encode())
    found.update(torch.get_rng_state().numpy().tobytes())
    found.update(np.random.get_state()[1].tobytes())  # type: ignore[union-attr, index]
    found.update(repr(random.getstate()).encode())
    return found.hexdigest()


class Album(TrainerCallback):
    """Digests after every step and every operation, in the order in which they came."""

    def __init__(self) -> None:
        self.made: MorphingTrainer | None = None
        self.pages: list[str] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.made is not None
        self.pages.append(digest(self.made))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step_end(args, state, control)

    def on_operation(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step_end(args, state, control)


def build(job: Crash, *callbacks: TrainerCallback) -> MorphingTrainer:
    model = add_adapters(tiny_model(**DROPOUT), LoraArguments(4, 4, lora_dropout=0.1))
    options = {**OPTIONS, **job.options}
    return trainer(job.folder, SCHEDULE, model, data=Tokens(31), callbacks=list(callbacks), **options)  # type: ignore[arg-type]


def run(job: Crash) -> None:
    """In the process: train as told, and leave a report of how it went."""
    album = Album()
    made = album.made = build(job, album)
    resume = job.resume
    if resume == "if possible":
        resume = any(job.folder.glob("checkpoint-*"))
        made.args.overwrite_output_dir = not resume
    faults = None if job.at == -1 else Faults(job.folder, job.at, job.how)
    report: dict[str, Any] = {"error": None}
    if faults is not None:
        faults.armed = True
    try:
        made.train(resume)
    except Exception as error:
        report |= {"error": f"{type(error).__name__}: {error}", "is_ours": isinstance(error, MorphError)}
    if faults is not None:
        faults.armed = False
        report |= {"points": faults.log}
    after = digest(made) if album.pages or report["error"] is None else None
    report |= {"after": after, "pages": album.pages, "losses": losses(made)}
    job.report.write_text(json.dumps(report))
