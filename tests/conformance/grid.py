"""The grid's driver: real short runs of every operation, one after the other, on one process or on a pair of them.

Two steps, the operation, two steps. A pair is started once for many cases, because starting one takes seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from morphing_trainer import MorphingTrainer
from morphing_trainer.data.samples import Blocks, collate
from morphing_trainer.engine import states_by_name
from morphing_trainer.errors import MorphError
from morphing_trainer.operations import OPERATIONS
from morphing_trainer.run.applying import bare_optimizer
from morphing_trainer.run.course import TrainingStage
from morphing_trainer.run.length import Length
from morphing_trainer.sharding.tensors import collected
from tests.conformance.cases import ARCHITECTURE, MEASURED, SETTINGS, STAGES
from tests.conformance.common import with_history
from tests.sharded import sharded
from tests.support import Tokens, arguments
from tests.trainer.program import finish, started

Way = Literal["single", "ddp", "compiled", "fsdp2"]
PROCESSES: Mapping[Way, int] = {"single": 1, "ddp": 2, "compiled": 1, "fsdp2": 2}
GLOBAL_BATCH = 8
OPTIONS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "max_steps": 4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 1,
    "eval_steps": 2,
    "eval_iters": 2,
    "weight_decay": 0.1,
    "disable_tqdm": True,
    "log_memory": False,
}


@dataclass(frozen=True)
class Entry:
    """A case of the grid: an operation as a schedule has it, and the model that it finds."""

    id: str
    written: Mapping[str, Any]
    frozen: tuple[str, ...] = ()
    lora: str = ""

    @property
    def name(self) -> str:
        return str(self.written["name"])

    @property
    def in_stages(self) -> bool:
        return self.name == "advance_stage"

    @property
    def sets_batch(self) -> bool:
        """Whether it acts on the batch of a device, which is not what a pair and a single process share."""
        return "batch_size" in self.name


def entries() -> list[Entry]:
    """Every case of the conformance tests."""
    found = [Entry(case.id, case.written, case.frozen, case.lora) for case in ARCHITECTURE]
    found += [Entry(f"{name}-{value}", {"name": name, "value": value}) for name, value, _ in SETTINGS]
    found += [Entry(f"measured-{number}", written) for number, (written, *_) in enumerate(MEASURED)]
    return found + [Entry(f"{name}-{value}", {"name": name, "value": value}) for name, value in STAGES]


def one_each(chosen: Sequence[Entry]) -> list[Entry]:
    """One case of every registered operation: with adapters, if it has such a case and another comes without."""
    known = {alias: name for name, kind in OPERATIONS.items() for alias in (name, *getattr(kind, "aliases", ()))}
    first: dict[str, Entry] = {}
    for entry in chosen:
        first.setdefault(known[entry.name], entry)
    return list(first.values())


@dataclass(frozen=True)
class Tour:
    """Cases that a process or a pair goes through; what rank 0 finds is left in `<folder>/<id>.pt`."""

    folder: Path
    way: Way
    cases: tuple[Entry, ...]
    instead: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Case -> the operation that means the same here."""

    def found(self, entry: Entry) -> dict[str, Any]:
        result: dict[str, Any] = torch.load(self.folder / f"{entry.id}.pt", weights_only=True)
        return result


def made(tour: Tour, entry: Entry, **changes: Any) -> MorphingTrainer:
    model, _ = with_history(entry.frozen, lora=entry.lora)
    processes = PROCESSES[tour.way]
    written = tour.instead.get(entry.id, entry.written)
    options = dict(OPTIONS)
    batch = GLOBAL_BATCH // processes
    options |= {"per_device_train_batch_size": batch, "per_device_eval_batch_size": batch}
    if tour.way == "compiled":
        torch._dynamo.reset()
        options |= {"torch_compile": True, "torch_compile_backend": "eager"}
    if processes > 1:
        options["ddp_backend"] = "gloo"
    data: dict[str, Any] = {"train_dataset": Tokens(101), "eval_dataset": Tokens(24, seed=2)}
    if entry.in_stages:
        blocks = [Blocks(Tokens(40, seed=seed).tokens.numpy()) for seed in (1, 2, 3)]
        lengths = {"train": Length("steps", 6), "finetune": Length("steps", 2)}
        stages = [TrainingStage(name, blocks[n], blocks[2], length) for n, (name, length) in enumerate(lengths.items())]
        data = {"stages": stages, "data_collator": collate}
        options["max_steps"] = -1
    args = arguments(tour.folder / entry.id, **{**options, **changes})
    return MorphingTrainer(model, args, schedule=[{**written, "max_wait_iters": 2}], **data)


def result(trainer: MorphingTrainer) -> dict[str, Any]:
    """What came of a run: losses, weights and moments as a whole, on rank 0. All ranks call it."""
    keep = trainer.is_world_process_zero()
    history = trainer.state.log_history
    states = states_by_name(trainer.bare_model, bare_optimizer(trainer))
    moments = {f"{name}: {key}": torch.as_tensor(value) for name, s in states.items() for key, value in s.items()}
    assert trainer._reports.records or not keep, "no operation was applied"
    args = trainer.args  # as they are in force
    return {
        "losses": [line["loss"] for line in history if "loss" in line],
        "eval_losses": [line["eval_loss"] for line in history if "eval_loss" in line],
        "weights": copies(collected(dict(trainer.bare_model.named_parameters()), keep=keep)),
        "moments": copies(collected(moments, keep=keep)),
        "batch": args.step_samples
        or args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
    }


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def go(tour: Tour, environment: Mapping[str, str]) -> None:
    """In a process: all cases of the tour."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    rank = int(environment.get("RANK", 0))
    tour.folder.mkdir(parents=True, exist_ok=True)
    log = os.open(tour.folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if tour.way == "fsdp2":
        sharded()
    for entry in tour.cases:
        start = time.process_time()
        try:
            trainer = made(tour, entry)
        except MorphError as error:  # on all ranks alike
            found: dict[str, Any] = {"refused": f"{type(error).__name__}: {error}"}
        else:
            trainer.train()
            found = result(trainer)
        found["seconds"] = time.process_time() - start
        if rank == 0:
            torch.save(found, tour.folder / f"{entry.id}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def toured(tour: Tour, seconds: float = 280) -> Tour:
    """Go through it in processes of its own."""
    codes = finish(started(go, tour, PROCESSES[tour.way]), seconds)
    logs = "\n".join(path.read_text()[-3000:] for path in sorted(tour.folder.glob("*.log")))
    assert codes == [0] * len(codes), logs
    return tour


def reference(tour: Tour) -> Tour:
    """What a single process, not compiled, makes of the same global batches."""
    instead = {}
    for entry in tour.cases:
        found = tour.found(entry)
        if entry.sets_batch and "refused" not in found:
            instead[entry.id] = {"name": "set_batch_size", "value": found["batch"]}
    return Tour(tour.folder.with_name(f"{tour.folder.name}-single"), "single", tour.cases, instead)


TOLERANCE = {"losses": 2e-6, "eval_losses": 2e-6, "weights": 1e-9, "moments": 1e-9}
"""Relative to the loss, and to the largest entry of a tensor. Models are in float64; their losses are in float32."""


def differences(entry: Entry, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What is not the same up to `TOLERANCE`, in words."""
    if "refused" in ours:
        return [f"{entry.id}: refused: {ours['refused']}"]
    found = []
    for part in ("losses", "eval_losses"):
        left, right = (torch.tensor(each[part], dtype=torch.float64) for each in (ours, theirs))
        if left.shape != right.shape or not torch.allclose(left, right, rtol=TOLERANCE[part], atol=0) or not len(left):
            found.append(f"{entry.id}: {part} {ours[part]}, should be {theirs[part]}")
    for part in ("weights", "moments"):
        if ours[part].keys() != theirs[part].keys() or not ours[part]:
            found.append(f"{entry.id}: {part} of {sorted(ours[part].keys() ^ theirs[part].keys())}")
            continue
        for name, left in ours[part].items():
            right = theirs[part][name]
            scale = max(1e-3, float(right.abs().max()))
            if left.shape != right.shape or float((left - right).abs().max()) > TOLERANCE[part] * scale:
                found.append(f"{entry.id}: {part} of {name} differ by {float((left - right).abs().max()):.3g}")
    return found
