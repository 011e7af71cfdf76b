"""Rounds of a contest on one model, taken together."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.curves import deviation
from benchmarks.device.budget import Figures
from benchmarks.device.speed import CONTEST

BARE, TRAINER, OURS = CONTEST


@dataclass(frozen=True)
class Contest:
    """All rounds on one model, eager or compiled, with the batch that fits.

    Attributes:
        runs: contestant -> its figures by round. A run that failed has no speed.
    """

    model: str
    mode: str
    batch: int
    length: int
    runs: Mapping[str, Mapping[int, Figures]]

    def _all(self, kind: str, key: str) -> dict[int, Any]:
        found = {turn: figures.get(key) for turn, figures in self.runs.get(kind, {}).items()}
        return {turn: value for turn, value in found.items() if value is not None}

    def median(self, kind: str, key: str) -> float | None:
        values = self._all(kind, key).values()
        return statistics.median(values) if values else None

    def ratios(self, kind: str, base: str, key: str = "tokens_per_s") -> list[float]:
        """Round by round."""
        ours, theirs = self._all(kind, key), self._all(base, key)
        return [ours[turn] / theirs[turn] for turn in ours if turn in theirs]

    def mfu(self, kind: str, peak: float | None) -> float | None:
        """Percent of the device's peak that the model's own FLOPs take."""
        speed, flops = self.median(kind, "tokens_per_s"), self.median(kind, "flops_per_token")
        return None if speed is None or flops is None or peak is None else 100 * speed * flops / (peak * 1e12)

    def deviation(self, kind: str) -> float | None:
        """How far its loss curve is from that of `Trainer`, relative to it."""
        ours, theirs, steps = self._all(kind, "losses"), self._all(TRAINER, "losses"), self._all(kind, "steps")
        found = [deviation(ours[turn], theirs[turn], steps[turn]) for turn in ours if turn in theirs]
        return max(found) if found else None

    def failure(self, kind: str) -> str | None:
        found = list(self._all(kind, "failed").values())
        return found[-1] if found else None


def contests(figures: Iterable[Figures]) -> list[Contest]:
    """Of rounds with several batches, those with the smallest: the others were given up."""
    groups: dict[tuple[str, str], list[Figures]] = {}
    for each in figures:
        if each["table"] == "speed":
            groups.setdefault((each["model"], each["mode"]), []).append(each)
    found = []
    for (model, mode), members in groups.items():
        batch = min(each["batch"] for each in members)
        runs: dict[str, dict[int, Figures]] = {}
        for each in members:
            if each["batch"] == batch:
                runs.setdefault(each["kind"], {})[each["round"]] = each
        found.append(Contest(model, mode, batch, members[0]["length"], runs))
    return found
