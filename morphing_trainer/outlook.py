"""What a run will be like: the dry run's phases with their size, cost and memory, and when each begins."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from morphing_trainer.flops import Flops, step_flops
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.memory.footprint import Footprint, Step, step_footprint
from morphing_trainer.planning import Played, fires_from
from morphing_trainer.reporting.records import Phase
from morphing_trainer.settings import Settings
from morphing_trainer.triggers import AllOf, AnyOf, AtShare, AtStep, AtTokens, InStage, Trigger, Waited

_ANY = 10**12
"""Steps of a run whose length is not known, to see which operations come whatever it is."""


@dataclass(frozen=True)
class Conditions:
    """What a run's cost and memory depend on beside model and settings.

    Attributes:
        length: tokens of a sample.
        steps: optimizer steps of the run, None where that is not known.
        processes: that share the batch.
        make_optimizer: from the parameters that are trained.
        autocast: type of the products under mixed precision, None without.
        checkpointing: activations are computed again on the way back.
        evaluates: the run evaluates by itself.
    """

    length: int
    make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    steps: int | None = None
    processes: int = 1
    autocast: torch.dtype | None = None
    checkpointing: bool = False
    evaluates: bool = True

    def tokens_per_step(self, settings: Settings) -> int:
        samples = settings.step_samples or settings.batch_size * settings.grad_accum * self.processes
        return samples * self.length


@dataclass(frozen=True)
class Prospect:
    """One phase of a run to come.

    Attributes:
        soonest: optimizer step at which it begins at the earliest.
        latest: at which it begins at the latest; None if nothing but the model's progress brings it about, or if that
            takes the length of the run.
        by_length: it comes for sure, at a step that the length of the run would tell.
        tokens: by an optimizer step.
        flops: of training on one sample.
        memory: of a training step, on one device.
        at_once: its operation is repeated, and each round follows at once, as its trigger stays true.
    """

    phase: Phase
    soonest: int
    latest: int | None
    tokens: int
    flops: Flops
    memory: Footprint
    by_length: bool = False
    at_once: bool = False

    def flops_per_token(self, length: int) -> float:
        return self.flops.total / length


@dataclass(frozen=True)
class Cost:
    """Of a whole run, in tokens and floating-point operations.

    Attributes:
        steps, tokens: of the run.
        flops: of the run.
        grown: of training the last model on as many tokens from the start.
    """

    steps: int
    tokens: int
    flops: float
    grown: float


@dataclass(frozen=True)
class Outlook:
    """A run to come, phase by phase."""

    prospects: Sequence[Prospect]
    conditions: Conditions

    @property
    def bounded(self) -> bool:
        """Whether every operation comes at some step at the latest."""
        return all(each.latest is not None for each in self.prospects)

    def cost(self, *, late: bool) -> Cost | None:
        """If every operation comes as soon as it can, or as late; None where that, or the run's length, is not known.

        What repeats to the end of the run counts with its first round.
        """
        steps = self.conditions.steps
        begins = [each.latest if late else each.soonest for each in self.prospects]
        if steps is None or any(begin is None for begin in begins):
            return None
        ends = [*begins[1:], steps]
        tokens = flops = 0.0
        last = self.prospects[0]
        for each, begin, end in zip(self.prospects, begins, ends, strict=True):
            assert begin is not None and end is not None
            if begin < steps:
                last, taken = each, each.tokens * (min(end, steps) - begin)
                tokens += taken
                flops += taken * each.flops_per_token(self.conditions.length)
        return Cost(steps, round(tokens), flops, tokens * last.flops_per_token(self.conditions.length))


def foresee(phases: Sequence[Played], conditions: Conditions) -> Outlook:
    """The phases of a dry run with what they cost, what they need, and when they begin."""
    found: list[Prospect] = []
    sizes: dict[Any, Footprint] = {}
    foretold = partial(begins, phases, conditions.tokens_per_step, evaluates=conditions.evaluates)
    times = foretold(end=conditions.steps)
    by_length = [
        begin is None and known is not None for (_, begin), (_, known) in zip(times, foretold(end=_ANY), strict=True)
    ]
    for (phase, spec, _, _), (first, begin), waits, at_once in zip(
        phases, times, by_length, _at_once(phases), strict=True
    ):
        tokens, flops = conditions.tokens_per_step(phase.settings), step_flops(spec, conditions.length)
        memory = _memory(spec, phase.settings, conditions, sizes)
        found.append(Prospect(phase, first, begin, tokens, flops, memory, waits, at_once))
    return Outlook(tuple(found), conditions)


def begins(
    phases: Sequence[Played],
    tokens_per_step: Callable[[Settings], int],
    *,
    evaluates: bool,
    tokens: int = 0,
    end: int | None = None,
) -> list[tuple[int, int | None]]:
    """Steps at which the phases of a dry run begin at the earliest and at the latest, see `Prospect`.

    Args:
        tokens: seen when the first of them begins.
        end: step at which the run ends, if that is known.
    """
    first = phases[0].soonest
    begin: int | None = first
    found = [(first, begin)]
    seen = seen_first = tokens
    """Tokens at `begin`, and at `first`, the earliest beginning."""
    for number, ((before, *_), (_, _, soonest, entry)) in enumerate(itertools.pairwise(phases), 1):
        assert entry is not None
        per_step = tokens_per_step(before.settings)
        reached = partial(_reached, first, seen_first, per_step)
        interval = before.settings.eval_interval
        due_first = max(soonest, fires_from(entry.trigger, first, interval, evaluates, reached, end))
        seen_first += (due_first - first) * per_step
        first = due_first
        if begin is not None:
            due = latest(entry.trigger, begin, seen, per_step, end)
            # One operation a step.
            due = None if due is None else max(due, begin + (number > 1))
            seen += 0 if due is None else (due - begin) * per_step
            begin = due
        found.append((first, begin))
    return found


def latest(trigger: Trigger, since: int, tokens: int, per_step: int, end: int | None = None) -> int | None:
    """The step at which a trigger fires at the latest, None if nothing but the model's progress makes it fire.

    Args:
        since: step of the operation before.
        tokens: seen by then.
        per_step: tokens of a step from then on.
        end: step at which the run ends, if that is known.
    """
    match trigger:
        case Waited(value=steps):
            return since + steps
        case AtStep(value=step):
            return max(since, step)
        case AtShare():
            return None if end is None else max(since, trigger.step(end))
        case AtTokens(value=wanted):
            return _reached(since, tokens, per_step, wanted)
        case AllOf(parts=parts):
            found = [latest(part, since, tokens, per_step, end) for part in parts]
            return None if None in found else max(step for step in found if step is not None)
        case AnyOf(parts=parts):
            found = [latest(part, since, tokens, per_step, end) for part in parts]
            return min((step for step in found if step is not None), default=None)
    return None


def _at_once(phases: Sequence[Played]) -> list[bool]:
    """See `Prospect`. Of rounds that are written out, the first tells it."""
    found = [False]
    led = [(each.entry, each.phase.repeats) for each in phases if each.entry is not None]
    for _, item in itertools.groupby(led, lambda pair: (pair[0].source, pair[0].place.item)):
        rounds = list(item)
        (first, endless), (last, _) = rounds[0], rounds[-1]
        again = endless or first.place.round != last.place.round
        at_once = again and all(_stays(entry.trigger) for entry, _ in rounds)
        found += [at_once and entry.place.round == first.place.round for entry, _ in rounds]
    return found


def _stays(trigger: Trigger) -> bool:
    """Whether it is true from some time of the run on, however often it has fired."""
    match trigger:
        case AtStep() | AtShare() | AtTokens():
            return True
        case InStage(then=then):
            return then is None or _stays(then)
        case AllOf(parts=parts):
            return all(map(_stays, parts))
        case AnyOf(parts=parts):
            return any(map(_stays, parts))
    return False


def _reached(since: int, seen: int, per_step: int, tokens: int) -> int:
    """The step at which so many tokens have been seen, where `seen` had been at `since`."""
    return since + max(0, math.ceil((tokens - seen) / per_step))


def _memory(spec: ModelSpec, settings: Settings, conditions: Conditions, known: dict[Any, Footprint]) -> Footprint:
    step = Step(
        settings.batch_size,
        conditions.length,
        accumulates=settings.grad_accum > 1,
        autocast=conditions.autocast,
        checkpointing=conditions.checkpointing,
    )
    key = (tuple(spec.shapes.items()), spec.untrained, step)
    if key not in known:
        known[key] = step_footprint(spec, step, conditions.make_optimizer)
    return known[key]


__all__ = ["Conditions", "Cost", "Outlook", "Prospect", "begins", "foresee", "latest"]
