"""The dry run: a schedule played through on descriptions, without weights."""

from __future__ import annotations

import hashlib

import torch

from morphing_trainer.errors import OperationError, Problem, ScheduleError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.operations import ArchitectureOperation, HyperparameterOperation
from morphing_trainer.reporting.records import Stage
from morphing_trainer.schedule import Position, Schedule
from morphing_trainer.settings import Settings


def operation_rng(seed: int, index: int) -> torch.Generator:
    """The random numbers of entry `index`: the same in the dry run, in the run, on every rank and after a resume."""
    digest = hashlib.sha256(f"operation {index} of seed {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def play(
    schedule: Schedule,
    spec: ModelSpec,
    settings: Settings,
    *,
    seed: int = 0,
    position: Position | None = None,
    evaluates: bool = True,
    can_evaluate: bool = True,
) -> list[Stage]:
    """The stages of a run from `position` (default: the start) to the end of its schedule.

    Args:
        spec, settings: the model and hyper-parameters at `position`.
        evaluates: whether the run evaluates by itself; without, a trigger on the loss never fires.
        can_evaluate: whether it has data to evaluate on; without, nothing can be evaluated again.

    Raises:
        ScheduleError: with every operation that does not fit, each judged on the model the ones before it leave.
    """
    position = (position or Position()).settle(schedule)
    stages = [_stage(position.done, None, None, "", spec, settings)]
    problems: list[Problem] = []
    for index, entry in enumerate(schedule.entries):
        operation = entry.operation
        if index < position.done or entry.completed:
            continue
        try:
            if isinstance(operation, HyperparameterOperation):
                settings = _usable(operation.update(settings, step=settings.lr_anchor))
            else:
                assert isinstance(operation, ArchitectureOperation)
                spec = operation.morph(spec, operation_rng(seed, index)).spec
        except (OperationError, OverflowError) as error:
            what = str(error) if isinstance(error, OperationError) else f"goes beyond what numbers can hold ({error})"
            problems.append(Problem(schedule.source.entry(index, operation.name, "value"), what))
        if not entry.trigger.can_fire(evaluates):
            what = f"can never fire ({entry.trigger.describe()})"
            hint = (
                "the run does not evaluate; set eval_strategy: steps and eval_steps"
                if not evaluates
                else "no loss is < 0"
            )
            where = schedule.source.entry(index, operation.name)
            problems.append(Problem(where, f"{what}: {hint}, or give max_wait_iters"))
        if entry.reevaluate and not can_evaluate:
            where = schedule.source.entry(index, operation.name, "reevaluate")
            problems.append(Problem(where, "there is no evaluation data; give eval_dataset, or leave it out"))
        stages.append(_stage(index + 1, operation.name, operation.value, entry.trigger.describe(), spec, settings))
    if problems:
        raise ScheduleError(problems)
    return stages


def _usable(settings: Settings) -> Settings:
    if not 0 <= settings.learning_rate < float("inf"):
        raise OperationError(f"the learning rate would become {settings.learning_rate}; use a smaller factor")
    return settings


def _stage(
    index: int, operation: str | None, value: object, trigger: str, spec: ModelSpec, settings: Settings
) -> Stage:
    return Stage(index=index, operation=operation, value=value, trigger=trigger, settings=settings, **spec.facts())
