"""From values to places in a picture, and the numbers at its axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` on 0 to 1; `log`: by their logarithms.

    `low` < `high`, both finite; above 0 under `log`.
    """

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, 0 at `low`, 1 at `high`; what is beyond them is put on them."""
        if not self.log:
            share = (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)  # of the largest floats, too
        elif value <= 0:
            share = 0.0
        else:
            low = math.log10(self.low)
            share = (math.log10(value) - low) / (math.log10(self.high) - low)
        return min(1.0, max(0.0, share))

    def ticks(self, most: int = 6, *, whole: bool = False) -> list[float]:
        """At most `most` round values (about), from `low` to `high`."""
        found = log_ticks(self.low, self.high, most) if self.log else []
        return found if len(found) >= 2 else linear_ticks(self.low, self.high, most, whole=whole)


def scale_of(values: Iterable[float], *, log: bool = False, zero: bool = False, margin: float = 0.05) -> Scale:
    """A scale on which all finite values (under `log`, those above 0) have their place, with a margin.

    Args:
        zero: begins at 0 if no value is below it.
    """
    found = [value for value in values if math.isfinite(value) and abs(value) < 1e300 and (value > 0 or not log)]
    if not found:
        return Scale(0.1, 1.0, log) if log else Scale(0.0, 1.0)
    low, high = min(found), max(found)
    if log:
        spread = max((math.log10(high) - math.log10(low)) * margin, 0.02)
        return Scale(max(low / 10**spread, 5e-324), high * 10**spread, log=True)
    spread = (high - low) * margin or abs(high) * 0.1 or 1.0
    begins = 0.0 if zero and low >= 0 else low - spread
    return Scale(begins, high + spread)


def linear_ticks(low: float, high: float, most: int = 6, *, whole: bool = False) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten; `whole`: whole numbers only."""
    rough = (high - low) / max(1, most)
    if not (rough > 0 and math.isfinite(rough)):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(each * power for each in _STEPS if each * power >= rough * 0.999)
    if whole:
        step = max(1.0, step)
        step = step if step == int(step) else 5.0  # 2.5 is none
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [0.0 if number == 0 else number * step for number in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Powers of ten; with 2 and 5 times them where that is not too many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
        found = [value for value in found if low * 0.9999 <= value <= high * 1.0001]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


def decimals(ticks: Sequence[float]) -> int:
    """How many the numbers at an axis need to be told apart."""
    gaps = [abs(b - a) for a, b in pairwise(ticks) if a != b]
    if not gaps:
        return 3
    gap = min(gaps)
    places = max(0, -math.floor(math.log10(gap) + 1e-9))
    between = abs(gap * 10.0**places - round(gap * 10.0**places)) > 1e-6  # of 2.5, say
    return min(12, places + int(between))
