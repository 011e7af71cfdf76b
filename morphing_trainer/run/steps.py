"""How many optimizer steps there are, counted by samples because batches change size on the way."""

from __future__ import annotations

import math
from collections.abc import Callable

from morphing_trainer.data.cursor import Batch, Cursor
from morphing_trainer.settings import Settings


def batch_of(settings: Settings, world_size: int, drop_last: bool) -> Batch:
    """What is read at once under these settings."""
    size = settings.batch_size
    step_size = getattr(settings, "step_samples", None) or size * world_size * settings.grad_accum
    return Batch(size, step_size, world_size, drop_last)


def total_steps(epochs: float, cursor: Cursor, batch: Batch, in_epoch: Callable[[int], int] | None = None) -> int:
    """Optimizer steps from the cursor's position until `epochs` epochs of its data are done.

    At the start this is the Trainer's own number, ceil(epochs * steps per epoch). A fraction of an epoch is counted in
    steps if it lies ahead and in samples if the run is in it; of texts always in samples, as steps leave some out.

    Args:
        in_epoch: the steps of a whole epoch, if somebody keeps them; it takes a while to count those of many texts.
    """
    in_epoch = in_epoch or (lambda epoch: cursor.layout(batch, epoch).steps)
    whole = math.floor(epochs)
    if cursor.epoch > whole:
        return 0
    if cursor.epoch < whole:
        between = range(cursor.epoch + 1, whole)
        count = sum(map(in_epoch, between)) if cursor.epochs_differ else len(between) * in_epoch(cursor.epoch)
        return cursor.layout(batch).steps + count + _part(epochs, whole, cursor, batch, in_epoch)
    if cursor.position == 0:
        return _part(epochs, whole, cursor, batch, in_epoch)
    if cursor.epochs_differ:
        return cursor.layout(batch).steps_before(_samples(epochs, whole, cursor))
    left = max(0, _samples(epochs, whole, cursor) - cursor.position)
    micro_batches = left // batch.global_size if batch.drop_last else -(-left // batch.global_size)
    return -(-micro_batches // -(-batch.step_size // batch.global_size))


def _part(epochs: float, whole: int, cursor: Cursor, batch: Batch, in_epoch: Callable[[int], int]) -> int:
    """Steps of the fraction of an epoch that lies ahead as a whole."""
    if epochs == whole:
        return 0
    if cursor.epochs_differ:
        return cursor.layout(batch, whole).steps_before(_samples(epochs, whole, cursor))
    steps = in_epoch(whole)
    # Not from the fraction alone: 2.2 * 5 is 11, but 0.2 as what 2.2 has beyond 2 is a little more than a fifth.
    return math.ceil(epochs * steps) - whole * steps


def _samples(epochs: float, whole: int, cursor: Cursor) -> int:
    """The fraction of an epoch in samples."""
    return math.ceil(epochs * cursor.length) - whole * cursor.length
