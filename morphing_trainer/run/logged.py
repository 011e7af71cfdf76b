"""The training losses that `Trainer` adds up for its log lines and its result: plain values, kept in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Logged:
    """How far the log has come.

    Attributes:
        pending: of every process, the sum of its losses since the last log line.
        at: the optimizer step from which the next line counts (left-out steps are counted off).
        total: sum of the losses in the lines so far, over all processes their mean.
        began: the optimizer step from which `total` counts.
        grad_norm: of the last step; None if it is not known.
        learning_rate: under which the last step was made; None if it is not known.
    """

    pending: tuple[float, ...]
    at: int
    total: float
    began: int
    grad_norm: float | None = None
    learning_rate: float | None = None

    def of(self, process: int, processes: int) -> float:
        """What `process` has pending; on another number of processes than then, as if each had had the mean."""
        if processes == len(self.pending):
            return self.pending[process]
        return math.fsum(self.pending) / len(self.pending)

    def mean(self, step: int, total: float) -> float:
        """The mean loss of all steps up to `step`, of the sum of their losses."""
        return total / max(step - self.began, 0.001)  # as `Trainer` has it of no step at all

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, which has no NaN and no infinity: they are written as text."""
        data = {name: _written(value) for name, value in asdict(self).items()}
        return {**data, "pending": [_written(value) for value in self.pending]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Logged:
        """Rebuild what `to_dict` wrote. Raises KeyError, TypeError or ValueError if it is malformed."""
        found = cls(
            pending=tuple(float(value) for value in data["pending"]),
            at=int(data["at"]),
            total=float(data["total"]),
            began=int(data["began"]),
            grad_norm=None if data["grad_norm"] is None else float(data["grad_norm"]),
            learning_rate=None if data["learning_rate"] is None else float(data["learning_rate"]),
        )
        if not found.pending or min(found.at, found.began) < 0:
            raise ValueError("logged: no process has anything pending, or a step is negative")
        return found


def _written(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
