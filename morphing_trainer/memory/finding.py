"""The largest batch that fits, found by trying."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from morphing_trainer.errors import OperationError

MULTIPLE = 8
WORTH = 0.8
"""A power of two is taken if it is at least this share of the largest batch that fits."""


class Probe(Protocol):
    """Tries batches out.

    Attributes:
        samples: the most that one device could be given.
    """

    samples: int

    def __call__(self, batch: int) -> float | None:
        """Memory in use at the peak of a step with this batch, in percent; None if it ran out. Alike on all ranks."""


class Found(NamedTuple):
    batch: int
    percent: float


def largest_batch(probe: Probe, target: float, limit: int) -> Found:
    """The largest batch whose step uses at most `target` percent of memory, and how much it uses.

    A multiple of 8, at most `limit` and `probe.samples`; a power of two where that is hardly smaller. The batch is
    doubled until one does not fit, then the gap is halved. Small ones are tried first, and one that by the trend of
    those before would need more memory than there is, is not tried: on a CPU the system might end the process.

    Raises:
        OperationError: if not even a batch of 8 fits, or there are no 8 samples.
    """
    most = min(limit, probe.samples) // MULTIPLE * MULTIPLE
    if most < MULTIPLE:
        raise OperationError(
            f"picks multiples of {MULTIPLE}, but a device has {probe.samples} samples at most; use set_batch_size"
        )
    tried: dict[int, float | None] = {}

    def fits(batch: int) -> bool:
        if batch not in tried:
            tried[batch] = None if _expected(tried, batch) > 100 else probe(batch)
        percent = tried[batch]
        return percent is not None and percent <= target

    if not fits(MULTIPLE):
        used = tried[MULTIPLE]
        what = "runs out of memory" if used is None else f"takes {used:.0f} % of memory, above the target {target:g} %"
        raise OperationError(
            f"not even a batch of {MULTIPLE} fits: it {what}. Use set_batch_size with a smaller one, "
            "activation_checkpointing, or a higher target_vram_percent"
        )
    low, high = MULTIPLE, MULTIPLE  # the largest that fits, and the smallest that does not (or most + 8)
    while low == high:
        high = min(2 * low, most)
        if high == low:
            high = most + MULTIPLE
        elif fits(high):
            low = high
    while high - low > MULTIPLE:
        middle = (low + high) // 2 // MULTIPLE * MULTIPLE
        low, high = (middle, high) if fits(middle) else (low, middle)
    power = 1 << (low.bit_length() - 1)
    best = power if power >= WORTH * low and fits(power) else low
    percent = tried[best]
    assert percent is not None
    return Found(best, percent)


def _expected(tried: dict[int, float | None], batch: int) -> float:
    """What `batch` would take if memory goes on growing as between the two largest that were measured; 0 if unknown."""
    known = sorted((size, percent) for size, percent in tried.items() if percent is not None and size < batch)
    if len(known) < 2:
        return 0.0
    (small, low), (large, high) = known[-2:]
    return high + (high - low) / (large - small) * (batch - large)
