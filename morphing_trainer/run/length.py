"""How long a stage of training is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Length:
    """How long a stage is: so many `epochs` (with fraction), optimizer `steps`, or training `tokens`."""

    unit: Literal["epochs", "steps", "tokens"]
    value: float

    def __str__(self) -> str:
        return f"{self.value:,.10g} {self.unit if self.value != 1 else self.unit[:-1]}"
