"""What early stopping remembers of the evaluations so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Patience:
    """Evaluations without improvement.

    Attributes:
        best: the metric of the last evaluation that was an improvement; None before the first.
        stale: evaluations since then.
        at: optimizer step of the last evaluation.
    """

    best: float | None = None
    stale: int = 0
    at: int = -1

    def after(self, value: float, step: int, *, greater: bool, threshold: float) -> Patience:
        """After an evaluation at `step`: an improvement is better than the last one by more than `threshold`.

        So many small steps add up to one. A metric that is NaN or infinite is none. What is evaluated again at the
        same step says nothing new.
        """
        if step <= self.at:
            return self
        gain = math.inf if self.best is None else (value - self.best if greater else self.best - value)
        if math.isfinite(value) and gain > threshold:
            return Patience(value, 0, step)
        return replace(self, stale=self.stale + 1, at=step)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Patience:
        return cls(None if data["best"] is None else float(data["best"]), int(data["stale"]), int(data["at"]))
