"""The learning-rate schedule under multipliers, warm-up changes and restarts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import TrainingArguments, get_scheduler

from morphing_trainer.errors import ConfigError
from morphing_trainer.settings import Settings

STATEFUL = ("reduce_lr_on_plateau", "greedy")
"""Scheduler types that are not a function of the step: they have no warm-up and no end."""


def make_scheduler(
    args: TrainingArguments,
    optimizer: Optimizer,
    settings: Settings,
    total_steps: int,
    position: int,
    ramp: tuple[int, int] = (0, 0),
) -> LRScheduler:
    """The scheduler that `args` name, begun at `settings.lr_anchor`, standing `position` scheduler steps behind it.

    Args:
        optimizer: its param groups hold the peak rate as `initial_lr` (or, in a new optimizer, as `lr`).
        total_steps: optimizer step at which the run ends.
        ramp: the optimizer step since which it has had a memory, and the steps in which the rate rises from there on.

    Raises:
        ConfigError: if `lr_scheduler_kwargs` does not hold what this type needs.
    """
    is_stateful = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type) in STATEFUL
    for group in optimizer.param_groups:
        peak = group.setdefault("initial_lr", group["lr"])
        if not is_stateful or position == 0:
            group["lr"] = peak
    try:
        scheduler: LRScheduler = get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=settings.warmup_steps,
            num_training_steps=max(1, total_steps - settings.lr_anchor),
            scheduler_specific_kwargs=cast("dict[str, Any] | None", args.lr_scheduler_kwargs),
        )
    except TypeError as error:  # of the function that makes it: something is missing, or unknown
        kind = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        raise ConfigError(
            f"lr_scheduler_kwargs: do not fit lr_scheduler_type {kind}, which says: {error}; give them as a mapping, "
            "such as '{\"num_decay_steps\": 1000}' for warmup_stable_decay"
        ) from error
    if ramp[1]:
        assert isinstance(scheduler, LambdaLR)
        since = ramp[0] - settings.lr_anchor
        scheduler.lr_lambdas = [_ramped(factor, since, ramp[1]) for factor in scheduler.lr_lambdas]
    if (position or ramp[1]) and not is_stateful:
        seek(scheduler, position)
    return scheduler


def _ramped(factor: Callable[[int], float], since: int, steps: int) -> Callable[[int], float]:
    """The factor of a schedule, times one that rises from 0 to 1 in `steps` steps."""

    def at(position: int) -> float:
        return factor(position) * min(1.0, max(0.0, (position - since) / steps))

    return at


def seek(scheduler: LRScheduler, position: int) -> None:
    """Put a scheduler that is a function of the step at `position`, at once."""
    assert isinstance(scheduler, LambdaLR), f"{type(scheduler).__name__} is not a function of the step"
    rates = [base * factor(position) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    moved = {"last_epoch": position, "_step_count": position + 1, "_last_lr": rates}
    scheduler.load_state_dict(scheduler.state_dict() | moved)


def scale_peaks(optimizer: Optimizer, old: float, new: float) -> None:
    """Change the peak rate from `old` to `new`; param groups with rates of their own keep their ratio to it.

    From 0, where there is no ratio, they keep their rates.
    """
    ratio = new / old if old else 1.0
    for group in optimizer.param_groups:
        for key in ("initial_lr", "lr"):
            if key in group:
                group[key] = new if group[key] == old else group[key] * ratio
