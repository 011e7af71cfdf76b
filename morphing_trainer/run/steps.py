"""How many optimizer steps there are, counted by samples because batches change size on the way."""

from __future__ import annotations

import math

from morphing_trainer.data.cursor import Cursor
from morphing_trainer.settings import Settings


def steps_in(samples: int, settings: Settings, world_size: int, drop_last: bool) -> int:
    """Optimizer steps that read `samples` consecutive samples of an epoch; a last, smaller one counts."""
    per_micro_batch = settings.batch_size * world_size
    micro_batches = samples // per_micro_batch if drop_last else -(-samples // per_micro_batch)
    return -(-micro_batches // settings.grad_accum)


def total_steps(epochs: float, cursor: Cursor, step: int, settings: Settings, world_size: int, drop_last: bool) -> int:
    """Optimizer step at which a run of `epochs` epochs ends, as seen from `step` and the cursor's position.

    At the start this is the Trainer's own number, ceil(epochs * steps per epoch). A fraction of an epoch is counted in
    steps if it lies ahead and in samples if the run is in it.
    """
    whole = math.floor(epochs)
    per_epoch = steps_in(cursor.length, settings, world_size, drop_last)
    if cursor.epoch < whole:
        # Not from the fraction alone: 2.2 * 5 is 11, but 0.2 as what 2.2 has beyond 2 is a little more than a fifth.
        ahead = math.ceil(epochs * per_epoch) - (cursor.epoch + 1) * per_epoch
        return step + steps_in(cursor.remaining, settings, world_size, drop_last) + ahead
    if cursor.epoch > whole:
        return step
    if cursor.position == 0:
        return step + math.ceil(epochs * per_epoch) - whole * per_epoch
    left = max(0, math.ceil(epochs * cursor.length) - whole * cursor.length - cursor.position)
    return step + steps_in(left, settings, world_size, drop_last)
