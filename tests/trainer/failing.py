"""Runs of several processes in which one fails at a point of choice, and then does not end by itself.

It lives on until the others have ended. So they cannot learn of it from a process that is gone, only from what the
library does; where the point is a SIGKILL, only from its connections.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from morphing_trainer import MorphingTrainer
from morphing_trainer.layers import saving
from morphing_trainer.run import applying, digest
from morphing_trainer.schedule import Schedule
from tests.sharded import sharded
from tests.support import Tokens, tiny_model, trainer
from tests.trainer.common import entry
from tests.trainer.program import OUT_OF_MEMORY, server, started

SCHEDULE = [entry("stack_layers", 2, 2), entry("change_batch_size", 2, 2), entry("freeze_layer", "wpe", 1)]
OPTIONS: dict[str, Any] = {
    "max_steps": 7,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 3,
    "disable_tqdm": True,
    "ddp_backend": "gloo",
}


@dataclass(frozen=True)
class Failing:
    """A run and the point at which one of its ranks fails.

    Attributes:
        folder: of the run; what rank r has come to is left in `<folder>-<r>.json`.
        point: a key of `POINTS`, or none.
        rank: which rank it is.
        how: what it does there: raises a ValueError, kills itself, runs out of memory, exits, or is interrupted.
        sharded: FSDP2 divides the model.
    """

    folder: Path
    point: str = ""
    rank: int = 1
    how: str = "raise"
    resume: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    sharded: bool = False

    def told(self, rank: int) -> Path:
        return self.folder.with_name(f"{self.folder.name}-{rank}.json")

    @property
    def moment(self) -> Path:
        """Made when the rank fails."""
        return self.folder.with_name(f"{self.folder.name}-failed")


class Breaks:
    """What happens at the point."""

    def __init__(self, job: Failing) -> None:
        self.job = job

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.job.moment.write_text(str(time.time()))
        match self.job.how:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "memory":
                raise type(OUT_OF_MEMORY)(*OUT_OF_MEMORY.args)
            case "exit":
                sys.exit(3)
            case "interrupt":
                raise KeyboardInterrupt
            case "runtime":
                raise RuntimeError("this rank has had enough")
        raise ValueError("this rank has had enough")


class Calls(TrainerCallback):
    """Breaks at an event of the loop."""

    def __init__(self, event: str, breaks: Breaks, step: int) -> None:
        def called(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step >= step:
                breaks()

        setattr(self, event, called)


class Data(Tokens):
    """Tokens of which some sample cannot be read, the first time one is asked for after `after` others."""

    breaks: Callable[[], Any] | None = None
    asked = 0

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.asked += 1
        if self.breaks is not None and self.asked > 10:
            self.breaks()
        return super().__getitem__(index)


def in_module(training: bool, backward: bool = False) -> Callable[[MorphingTrainer, Breaks], None]:
    def arm(made: MorphingTrainer, breaks: Breaks) -> None:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            if module.training != training or (training and made.state.global_step < 1):
                return
            if backward:
                output.register_hook(breaks)
            else:
                breaks()

        made.model.transformer.h[0].mlp.register_forward_hook(hook)

    return arm


def at_event(event: str, step: int = 1) -> Callable[[MorphingTrainer, Breaks], None]:
    return lambda made, breaks: made.add_callback(Calls(event, breaks, step))


def instead_of(owner: Any, name: str) -> Callable[[MorphingTrainer, Breaks], None]:
    return lambda made, breaks: setattr(owner, name, breaks)


def in_trainer(name: str) -> Callable[[MorphingTrainer, Breaks], None]:
    return lambda made, breaks: setattr(made, name, breaks)


def in_data(made: MorphingTrainer, breaks: Breaks) -> None:
    assert isinstance(made.train_dataset, Data)
    made.train_dataset.breaks = breaks


def in_optimizer(made: MorphingTrainer, breaks: Breaks) -> None:
    class Fails(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            breaks()

    made.optimizer = Fails(made.model.parameters(), lr=0.1)


def in_reports(made: MorphingTrainer, breaks: Breaks) -> None:
    made._reports.operation = breaks  # type: ignore[method-assign]


POINTS: dict[str, Callable[[MorphingTrainer, Breaks], None]] = {
    "opening": in_trainer("find_bundle"),
    "planning": in_trainer("_planned"),
    "wrapping": in_trainer("create_optimizer"),
    "beginning": at_event("on_train_begin", 0),
    "data": in_data,
    "forward": in_module(True),
    "backward": in_module(True, backward=True),
    "gradients": at_event("on_pre_optimizer_step"),
    "optimizer": in_optimizer,
    "step's end": at_event("on_step_end"),
    "log": at_event("on_log"),
    "growing": instead_of(applying, "grow"),
    "moving rows": instead_of(applying, "transplant_states"),
    "digest": instead_of(digest, "digest"),
    "installing": instead_of(applying, "install_states"),
    "wrapping again": in_trainer("prepare_again"),
    "settings": in_trainer("_adopt"),
    "report": in_reports,
    "evaluation": in_module(False),
    "evaluated": at_event("on_evaluate"),
    "staging": instead_of(saving, "staging_folder"),
    "writing": instead_of(saving, "random_states"),
    "publishing": instead_of(saving, "publish"),
    "saved": at_event("on_save"),
    "end": at_event("on_train_end"),
}
"""Name -> arms a trainer on the rank that is to fail there."""


def at_step_end(do: Callable[[MorphingTrainer], None]) -> Callable[[MorphingTrainer, Breaks], None]:
    """Do it once, behind the second step, where the first operation is due."""

    def arm(made: MorphingTrainer, breaks: Breaks) -> None:
        class Drifts(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == 2:
                    do(made)

        made.add_callback(Drifts())

    return arm


def drift_weight(made: MorphingTrainer) -> None:
    with torch.no_grad():
        made.bare_model.transformer.h[0].mlp.c_proj.bias[3] += 1e-6


def drift_moment(made: MorphingTrainer) -> None:
    made.optimizer.state[made.bare_model.transformer.h[0].mlp.c_proj.bias]["exp_avg"][3] *= 1 + 1e-6


def drift_setting(made: MorphingTrainer) -> None:
    assert made.session is not None
    state = made.session.state
    state.settings = replace(state.settings, warmup_steps=5)


def other_batch(made: MorphingTrainer, breaks: Breaks) -> None:
    made._given["per_device_train_batch_size"] = 3


def other_schedule(made: MorphingTrainer, breaks: Breaks) -> None:
    made.schedule = Schedule.of([*SCHEDULE[:2], entry("freeze_layer", "wte", 1)])


def other_memory(made: MorphingTrainer, breaks: Breaks) -> None:
    """What is loaded of a checkpoint differs, as from another disk."""
    load = made._load_states

    def loads(folder: Path) -> None:
        load(folder)
        drift_moment(made)

    made._load_states = loads  # type: ignore[method-assign]


DRIFTS: dict[str, Callable[[MorphingTrainer, Breaks], None]] = {
    "weight": at_step_end(drift_weight),
    "exp_avg": at_step_end(drift_moment),
    "setting": at_step_end(drift_setting),
    "batch": other_batch,
    "schedule": other_schedule,
    "loaded": other_memory,
}
"""Name -> makes the rank another one than the others, without an error."""


def run(job: Failing, environment: Mapping[str, str]) -> None:
    """In the process: train, tell what came of it, and live on."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    log = os.open(job.folder.with_name(f"{job.folder.name}-{rank}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if job.sharded:
        sharded()
    made = trainer(job.folder, SCHEDULE, tiny_model(n_layer=1), data=Data(41), **{**OPTIONS, **job.options})
    if job.point and rank == job.rank:
        {**POINTS, **DRIFTS}[job.point](made, Breaks(job))
    error: BaseException | None = None
    try:
        made.train(job.resume)
    except BaseException as raised:
        error = raised
    told = {"type": type(error).__name__, "text": str(error), "time": time.time(), "step": made.state.global_step}
    told |= {"intact": torch.distributed.is_initialized(), "layers": len(made.bare_model.transformer.h)}
    job.told(rank).write_text(json.dumps(told))
    end = time.monotonic() + 60
    while not all(job.told(each).exists() for each in range(world) if job.how != "kill" or each != job.rank):
        if time.monotonic() > end:
            os._exit(7)  # somebody waits in vain
        time.sleep(0.02)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def launched(job: Failing, processes: int = 2) -> list[Any]:
    return started(run, job, processes)


__all__ = ["POINTS", "Failing", "launched", "server"]
