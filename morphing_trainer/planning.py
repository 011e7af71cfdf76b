"""The dry run: a schedule played through on descriptions, without weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from morphing_trainer.errors import OperationError, Problem, ScheduleError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.operations import ArchitectureOperation, HyperparameterOperation, MeasuredOperation
from morphing_trainer.reporting.records import Phase
from morphing_trainer.schedule import Entry, Position, Schedule
from morphing_trainer.settings import Settings
from morphing_trainer.triggers import (
    AllOf,
    AnyOf,
    AtShare,
    AtStep,
    AtTokens,
    InStage,
    LossBelow,
    Plateau,
    RankUseAbove,
    Trigger,
    Waited,
    needs_adapters,
    needs_analysis,
)

MOST_EFFORT = 20_000
"""How long the endless part of a schedule is played: an operation counts 1, a morph the model's number of parameter
tensors. About a second; not measured in time, so that all ranks play alike."""

MOST_WRITTEN = 200_000
"""The same for what is written out, all of which has to be played: about ten seconds. More than that is refused."""


def operation_rng(seed: int, index: int) -> torch.Generator:
    """The random numbers of operation `index`: the same in the dry run and the run, on every rank, after a resume."""
    digest = hashlib.sha256(f"operation {index} of seed {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class Played(NamedTuple):
    """A phase of the dry run, the model in it, and the first step at which it can begin. `entry` leads to it."""

    phase: Phase
    spec: ModelSpec
    soonest: int
    entry: Entry | None = None


def play(schedule: Schedule, spec: ModelSpec, settings: Settings, **options: Any) -> list[Phase]:
    """The phases that `played` finds; same arguments, same errors."""
    return [each.phase for each in played(schedule, spec, settings, **options)]


def played(
    schedule: Schedule,
    spec: ModelSpec,
    settings: Settings,
    *,
    seed: int = 0,
    position: Position | None = None,
    steps: int | None = None,
    evaluates: bool = True,
    can_evaluate: bool = True,
    analyses: bool = True,
    check: Callable[[Phase], None] | None = None,
    settle: Callable[[Settings], Settings] = lambda settings: settings,
) -> list[Played]:
    """The phases of a run from `position` (default: the start) to the end of its schedule.

    What is repeated to the end of the run is played round after round until a round leaves everything as it was, or
    the run ends, or `MOST_EFFORT` is spent. Only the first of these rounds is among the phases, marked `repeats`.

    Args:
        spec, settings: the model and hyper-parameters at `position`.
        steps: the optimizer step at which the run ends, if that is known.
        evaluates: whether the run evaluates by itself; without, a trigger on the loss never fires.
        can_evaluate: whether it has data to evaluate on; without, nothing can be evaluated again.
        analyses: whether it looks at the ranks that adapters use; without, a trigger on them is refused.
        check: raises ScheduleError for a phase that this run cannot carry out. It sees every phase behind an operation.
        settle: what the number of processes makes of settings.

    Raises:
        ScheduleError: with every operation that does not fit, each judged on the model the ones before it leave. One
            that repeats is named once, in the first round in which it does not fit.
    """
    position = (position or Position()).settle(schedule)
    run = _DryRun(schedule, spec, settings, seed, position.since, evaluates, can_evaluate, analyses, check, settle)
    phases = [Played(_phase(position.done, None, None, "", spec, settings), spec, position.since)]
    for index in range(position.done, len(schedule.entries)):
        if run.problems and run.effort > MOST_EFFORT:
            break  # what there is to tell so far is enough to go on with
        if run.effort > MOST_WRITTEN:
            what = "the operations up to here change so many tensors that checking them all would take too long"
            problem = Problem(schedule.where(index), f"{what}; write fewer, or repeat them to the end")
            raise ScheduleError([*run.problems.values(), problem])
        if not schedule.entries[index].completed:
            phases.append(run.apply(index))
    if schedule.cycle:
        phases += run.repeat(max(position.done, len(schedule.entries)), steps)
    if run.problems:
        raise ScheduleError(run.problems.values())
    return phases


class _DryRun:
    """A run as far as it can be told without weights: model and settings, the earliest step, what does not fit."""

    def __init__(
        self,
        schedule: Schedule,
        spec: ModelSpec,
        settings: Settings,
        seed: int,
        since: int,
        evaluates: bool,
        can_evaluate: bool,
        analyses: bool,
        check: Callable[[Phase], None] | None,
        settle: Callable[[Settings], Settings],
    ) -> None:
        self.schedule, self.spec, self.settings, self.seed = schedule, spec, settings, seed
        self.evaluates, self.can_evaluate, self.analyses, self.check = evaluates, can_evaluate, analyses, check
        self.settle = settle
        self.since = self.soonest = since
        """Steps of the last operation, and from which on there can be another, at the earliest."""
        self.effort = 0
        self.problems: dict[tuple[object, ...], Problem] = {}
        """By the place in the file and the field, so that each is there once."""

    def apply(self, index: int) -> Played:
        """Apply operation `index`, and note what does not fit."""
        entry = self.schedule.at(index)
        assert entry is not None
        self.since = self._earliest(entry)
        self.soonest = self.since + 1
        operation, resizes = entry.operation, False
        self._check_adapters(index, entry)
        try:
            if isinstance(operation, HyperparameterOperation):
                new = operation.update(self.settings, step=self.settings.lr_anchor)
                self.settings = _usable(self.settle(new))
                self.effort += 1
            else:
                assert isinstance(operation, ArchitectureOperation)
                morph = operation.morph(self.spec, operation_rng(self.seed, index))
                self.spec, resizes = morph.spec, morph.lineage.resizes
                self.effort += len(self.spec.shapes)
        except (OperationError, OverflowError) as error:
            what = str(error) if isinstance(error, OperationError) else f"goes beyond what numbers can hold ({error})"
            self._note(index, what, "value")
        if not entry.trigger.can_fire(self.evaluates):
            what = f"can never fire ({entry.trigger.describe()})"
            hint = (
                "the run does not evaluate; set eval_strategy: steps and eval_steps"
                if not self.evaluates
                else "no loss is < 0"
            )
            self._note(index, f"{what}: {hint}, or give max_wait_iters")
        if entry.reevaluate and not self.can_evaluate:
            self._note(index, "there is no evaluation data; give eval_dataset, or leave it out", "reevaluate")
        described = entry.described()
        phase = _phase(index + 1, operation.name, operation.value, described, self.spec, self.settings)
        phase = replace(phase, resizes=resizes, measures=isinstance(operation, MeasuredOperation))
        try:
            if self.check is not None:
                self.check(phase)
        except ScheduleError as error:
            for number, problem in enumerate(error.problems):
                self.problems.setdefault((*entry.place.path, "check", number), problem)
        return Played(phase, self.spec, self.since, entry)

    def repeat(self, begin: int, steps: int | None) -> list[Played]:
        """Play the endless part from operation `begin` on; the phases of the first round."""
        size = len(self.schedule.cycle)
        before, self.effort = (self.spec, self.settings), 0
        first = [self.apply(index) for index in range(begin, begin + size)]
        phases = [each._replace(phase=replace(each.phase, repeats=True)) for each in first]
        while not self.problems and (self.spec, self.settings) != before and self.effort < MOST_EFFORT:
            before, begin = (self.spec, self.settings), begin + size
            for index in range(begin, begin + size):
                entry = self.schedule.at(index)
                assert entry is not None
                # What is due at the last step is not applied.
                if steps is not None and self._earliest(entry) >= steps:
                    return phases
                self.apply(index)
        return phases

    def _earliest(self, entry: Entry) -> int:
        """The first step at which the next operation can be applied."""
        return max(self.soonest, fires_from(entry.trigger, self.since, self.settings.eval_interval, self.evaluates))

    def _check_adapters(self, index: int, entry: Entry) -> None:
        """Before the operation: a trigger on the ranks of adapters needs the analysis, and adapters."""
        if needs_analysis(entry.trigger) and not self.analyses:
            what = "rank_use_above needs the analysis, which this run does not make; set analysis_evals: 1"
            self._note(index, f"{what} (every evaluation; 2 is every second one), or use another condition", "when")
        elif needs_adapters(entry.trigger) and not self.spec.sites:
            what = f"can never fire ({entry.trigger.describe()}): the model has no adapters here"
            self._note(index, f"{what}; start with some (lora_r), or let set_attn_lora_rank come before", "when")

    def _note(self, index: int, what: str, *fields: str) -> None:
        entry = self.schedule.at(index)
        assert entry is not None
        finished = (entry.place.round or 1) - 1
        if index >= len(self.schedule.entries) and finished:
            what += f"; the run may come to this round, and repeat: {finished} would end before it"
        self.problems.setdefault((*entry.place.path, *fields), Problem(self.schedule.where(index, *fields), what))


def fires_from(
    trigger: Trigger,
    since: int,
    interval: int | None,
    evaluates: bool,
    at_tokens: Callable[[int], int] = lambda tokens: 0,
    end: int | None = None,
) -> int:
    """The first optimizer step at which a trigger can fire.

    Args:
        since: step of the operation before.
        interval: steps between evaluations, if they are made by steps.
        at_tokens: the step at which a run has seen so many tokens; without, it may be any.
        end: the step at which the run ends; without, a share of it may be any step.
    """

    def first(part: Trigger) -> int:
        return fires_from(part, since, interval, evaluates, at_tokens, end)

    match trigger:
        case Waited(value=steps):
            return since + steps
        case AtStep(value=step):
            return max(since, step)
        case AtShare() if end is not None:
            return max(since, trigger.step(end))
        case AtTokens(value=tokens):
            return max(since, at_tokens(tokens))
        case Plateau(window=window):
            return (since // interval + window) * interval if interval else since + window
        case LossBelow() | RankUseAbove():
            return (since // interval + 1) * interval if interval else since + 1
        case InStage(then=then):
            return first(then) if then else since
        case AllOf(parts=parts):
            return max(map(first, parts))
        case AnyOf(parts=parts):
            return min((first(part) for part in parts if part.can_fire(evaluates)), default=since)
    return since


def _usable(settings: Settings) -> Settings:
    if not 0 <= settings.learning_rate < float("inf"):
        raise OperationError(f"the learning rate would become {settings.learning_rate}; use a smaller factor")
    return settings


def _phase(
    index: int, operation: str | None, value: object, trigger: str, spec: ModelSpec, settings: Settings
) -> Phase:
    facts: dict[str, Any] = {**spec.facts()}
    return Phase(index=index, operation=operation, value=value, trigger=trigger, settings=settings, **facts)
