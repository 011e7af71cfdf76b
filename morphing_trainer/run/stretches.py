"""What a token costs, from operation to operation; read from `stats/work.json`.

`morph report` reads that in place of counting from the models' descriptions (`run.work`), which takes torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morphing_trainer.reading import read_json
from morphing_trainer.reporting.records import Record
from morphing_trainer.run.salvage import number


@dataclass(frozen=True)
class Stretch:
    """From so many `tokens` on, `cost` floating-point operations per token."""

    tokens: float
    cost: float


def spent(tokens: float, stretches: Sequence[Stretch]) -> float:
    """Floating-point operations of training on the first `tokens` tokens."""
    ends = [*(each.tokens for each in stretches[1:]), math.inf]
    return sum(each.cost * max(0.0, min(tokens, end) - each.tokens) for each, end in zip(stretches, ends, strict=True))


def read_work(path: Path) -> list[Stretch]:
    """What a token has cost, from operation to operation; empty if the file is not there or not what a run writes."""
    try:
        phases: Any = read_json(path)["phases"]
        found = [(number(tokens), number(cost)) for tokens, cost in phases]
    except (OSError, ValueError, TypeError, LookupError):
        return []
    sound = [Stretch(tokens, cost) for tokens, cost in found if tokens is not None and cost is not None and cost >= 0]
    return sound if len(sound) == len(found) else []


def fits(phases: Sequence[Stretch], records: Sequence[Record]) -> bool:
    """Whether they are those of a run with these operations."""
    return [phase.tokens for phase in phases] == [0.0, *(float(record.tokens) for record in records)]
