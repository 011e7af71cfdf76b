"""The batch of an optimizer step in two numbers: how many samples it has, and how many fit at once."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from morphing_trainer.errors import ConfigError
from morphing_trainer.settings import Settings


class Batches(NamedTuple):
    """How the samples of an optimizer step are cut.

    Attributes:
        per_device: samples per device and micro-batch.
        grad_accum: micro-batches per optimizer step.
        step_samples: samples of a step over all processes, where that is not the product of the two and the number of
            processes: the last micro-batch is smaller then. None where it is.
    """

    per_device: int
    grad_accum: int
    step_samples: int | None


def split(batch_size: int, mini_batch_size: int | None, processes: int) -> Batches:
    """Cut `batch_size` samples, over all processes, into micro-batches of at most `mini_batch_size` per device.

    Args:
        mini_batch_size: None takes a step's samples at once.

    Raises:
        ConfigError: if there are more processes than samples.
    """
    if batch_size < processes:
        raise ConfigError(
            f"batch_size: {batch_size} samples over all processes leave none for some of {processes}; give at least "
            f"{processes}, or start fewer processes."
        )
    share = -(-batch_size // processes)
    per_device = share if mini_batch_size is None else min(mini_batch_size, share)
    grad_accum = -(-batch_size // (per_device * processes))
    even = per_device * grad_accum * processes == batch_size
    return Batches(per_device, grad_accum, None if even else batch_size)


def settled(settings: Settings, processes: int) -> Settings:
    """The settings with the number of micro-batches that an uneven step needs; others are as they were."""
    if settings.step_samples is None:
        return settings
    whole = settings.batch_size * processes
    grad_accum = -(-settings.step_samples // whole)
    even = whole * grad_accum == settings.step_samples
    return replace(settings, grad_accum=grad_accum, step_samples=None if even else settings.step_samples)
