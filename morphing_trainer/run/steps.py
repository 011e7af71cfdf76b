"""How many optimizer steps there are, counted by samples because batches change size on the way."""

from __future__ import annotations

import math

from morphing_trainer.data.cursor import Batch, Cursor
from morphing_trainer.settings import Settings


def batch_of(settings: Settings, world_size: int, drop_last: bool) -> Batch:
    """What is read at once under these settings."""
    size = settings.batch_size
    step_size = getattr(settings, "step_samples", None) or size * world_size * settings.grad_accum
    return Batch(size, step_size, world_size, drop_last)


def total_steps(epochs: float, cursor: Cursor, batch: Batch) -> int:
    """Optimizer steps from the cursor's position until `epochs` epochs of its data are done.

    At the start this is the Trainer's own number, ceil(epochs * steps per epoch). A fraction of an epoch is counted in
    steps if it lies ahead and in samples if the run is in it.
    """
    whole = math.floor(epochs)
    if cursor.epoch > whole:
        return 0
    if cursor.epoch < whole or cursor.position == 0:
        last = cursor.layout(batch, whole).steps if epochs > whole else 1
        # Not from the fraction alone: 2.2 * 5 is 11, but 0.2 as what 2.2 has beyond 2 is a little more than a fifth.
        part = math.ceil(epochs * last) - whole * last
        if cursor.epoch == whole:
            return part
        between = range(cursor.epoch + 1, whole)
        if cursor.epochs_differ:
            return cursor.layout(batch).steps + sum(cursor.layout(batch, epoch).steps for epoch in between) + part
        return cursor.layout(batch).steps + len(between) * cursor.layout(batch, cursor.epoch).steps + part
    left = max(0, math.ceil(epochs * cursor.length) - whole * cursor.length - cursor.position)
    micro_batches = left // batch.global_size if batch.drop_last else -(-left // batch.global_size)
    return -(-micro_batches // -(-batch.step_size // batch.global_size))
