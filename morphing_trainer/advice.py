"""Advice on a schedule, each piece with where it is from. Pure functions of an `Outlook`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from morphing_trainer.outlook import Outlook, Prospect
from morphing_trainer.settings import Settings

GSTACK = "Du et al. 2024, Stacking Your Transformers, arXiv:2405.15319"
WARM_START = "arXiv:2605.13405, on when a warm start is effective"
PROGRESSIVE = "arXiv:2511.04981, on zero- and one-layer progressive training"
RELORA = "Lialin et al. 2023, ReLoRA, arXiv:2307.05695"
BATCH = "arXiv:2505.23971, on batch-size warm-up"

MOST_GROWTH = 4.0
MOST_TOKENS = 20
LOW_RATE = 0.5
LAST_GROWTH = 0.9
_REWARMS = ("reset_lr_schedule", "set_warmup_iters", "change_warmup_iters")
_BATCHES = ("change_batch_size", "set_batch_size", "set_batch_size_relative", "change_grad_accum", "set_grad_accum")
_RATES = ("change_lr", "set_lr", *_REWARMS)

Rate = Callable[[Settings, int], float | None]
"""Share of the peak learning rate at a step under these settings, None where nobody knows."""


@dataclass(frozen=True)
class Advice:
    """What may be better otherwise.

    Attributes:
        index: of the operation it is about, counted from 1 as in tables; 0 for the schedule as a whole.
        what: is unusual, and what others found, in words.
        source: who found it; "" where it follows from the schedule itself.
    """

    index: int
    what: str
    source: str = ""

    def __str__(self) -> str:
        place = f"operation {self.index}: " if self.index else ""
        return f"{place}{self.what}" + (f" ({self.source})" if self.source else "")


def advise(outlook: Outlook, rate: Rate = lambda settings, step: None) -> list[Advice]:
    """All that can be said, in the order of the schedule."""
    found = itertools.chain(
        _growth(outlook), _rates(outlook, rate), _merges(outlook), _batches(outlook), _times(outlook)
    )
    return sorted(found, key=lambda advice: advice.index)


def _pairs(outlook: Outlook) -> Iterator[tuple[Prospect, Prospect]]:
    return itertools.pairwise(outlook.prospects)


def _grows(before: Prospect, after: Prospect) -> bool:
    old, new = before.phase, after.phase
    return (new.layers, new.mlp) != (old.layers, old.mlp) and new.parameters > old.parameters


def _growth(outlook: Outlook) -> Iterator[Advice]:
    """Size of the steps, and tokens that a model has seen when it grows."""
    tokens = 0.0
    for before, after in _pairs(outlook):
        tokens += before.tokens * max(0, _step(after) - _step(before))
        if not _grows(before, after) or _late(outlook, after):
            continue
        index = after.phase.index
        # From one block at once to the full depth is what PROGRESSIVE found best.
        depth = after.phase.layers / before.phase.layers if before.phase.layers > 1 else 1.0
        factor = max(depth, after.phase.mlp / before.phase.mlp)
        if factor > MOST_GROWTH:
            what = f"grows {factor:.3g}-fold at once; a factor of 2 to 4 was best"
            yield Advice(index, f"{what}; grow in two operations", GSTACK)
        per_parameter = tokens / before.phase.parameters
        if per_parameter > MOST_TOKENS:
            what = f"the model has seen {per_parameter:.3g} tokens per parameter when it grows"
            yield Advice(index, f"{what}; the gain was largest below {MOST_TOKENS}, so grow earlier", WARM_START)


def _rates(outlook: Outlook, rate: Rate) -> Iterator[Advice]:
    """Growth when the learning rate has decayed."""
    anchor = 0  # step at which the learning rate's schedule last began; the dry run knows no steps
    for number, (before, after) in enumerate(_pairs(outlook), 1):
        step = _step(after)
        if after.phase.operation == "reset_lr_schedule":
            anchor = step
        if not _grows(before, after) or _followed(outlook, number, _REWARMS):
            continue
        settings = replace(before.phase.settings, lr_anchor=anchor)
        share = rate(settings, step)
        if share is not None and share < LOW_RATE and step - anchor > settings.warmup_steps:
            what = (
                f"grows at step {step:,}, when the learning rate has fallen to {share:.0%} of its peak; new weights "
                "were trained best before it decays: grow earlier, use a schedule that is constant until late "
                "(lr_scheduler_type: warmup_stable_decay), or let reset_lr_schedule follow"
            )
            yield Advice(after.phase.index, what, PROGRESSIVE)


def _merges(outlook: Outlook) -> Iterator[Advice]:
    for number, (_, after) in enumerate(_pairs(outlook), 1):
        if after.phase.operation == "merge_lora_weights" and not _followed(outlook, number, _REWARMS):
            what = "merges adapters without re-warming the learning rate; let reset_lr_schedule follow, with warm-up"
            yield Advice(after.phase.index, what, RELORA)


def _batches(outlook: Outlook) -> Iterator[Advice]:
    for number, (before, after) in enumerate(_pairs(outlook), 1):
        ratio = after.tokens / before.tokens
        if after.phase.operation in _BATCHES and ratio >= 2 and not _followed(outlook, number, _RATES):
            what = f"makes steps {ratio:.3g} times as large at the same learning rate"
            yield Advice(after.phase.index, f"{what}; change_lr {math.sqrt(ratio):.3g} would go with it", BATCH)


def _times(outlook: Outlook) -> Iterator[Advice]:
    """Operations that may never come, too late, or too often at once."""
    steps = outlook.conditions.steps
    for before, after in _pairs(outlook):
        index = after.phase.index
        if after.at_once:
            what = "is repeated, and each round of it follows at once, as what brings it stays true"
            yield Advice(index, f"{what}; put a waited beside it, under all")
        if steps is not None and after.soonest >= steps:
            yield Advice(index, f"can come at step {after.soonest:,} at the earliest; the run ends at step {steps:,}")
        elif after.latest is None and before.latest is not None and not after.by_length:
            yield Advice(
                index, "may never come, nor what is behind it: only the model's progress fires it; add max_wait_iters"
            )
        elif steps is not None and _late(outlook, after):
            if not _late(outlook, before):
                what = f"may come as late as step {_step(after):,}, and the run ends at step {steps:,}; then it is left"
                yield Advice(index, f"{what} out, and what is behind it")
        elif steps is not None and _grows(before, after) and _step(after) > LAST_GROWTH * steps:
            left = 1 - _step(after) / steps
            what = f"may leave the grown model {left:.0%} of the steps; growth at 80 % was late enough"
            yield Advice(index, what, PROGRESSIVE)


def _step(each: Prospect) -> int:
    """When it begins at the latest, or as soon as it can where nobody knows that."""
    return each.soonest if each.latest is None else each.latest


def _late(outlook: Outlook, each: Prospect) -> bool:
    """Whether the run may end before this phase."""
    return outlook.conditions.steps is not None and _step(each) >= outlook.conditions.steps


def _followed(outlook: Outlook, number: int, names: tuple[str, ...]) -> bool:
    """Whether one of the operations beside number `number`, up to two on either side, is one of these."""
    near = outlook.prospects[max(1, number - 2) : number + 3]
    return any(each.phase.operation in names for each in near)
