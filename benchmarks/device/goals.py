"""What was to be reached on a GPU, and whether it was."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.device.budget import Figures
from benchmarks.device.contest import BARE, OURS, TRAINER, contests

MFU_GOAL, TRAINER_GOAL, BARE_GOAL = 50.0, 1.0, 0.97
H100_CLASS = 750.0
"""TFLOP/s of dense bf16 from which on a card is one of which the goal for MFU is asked."""
SAME = 0.01
"""How far loss curves of the same training may be apart in bf16, where a GPU adds up in any order."""
UNKNOWN = "-"


@dataclass(frozen=True)
class Goal:
    """A goal and what was reached; `met` is None where it cannot be told, or is not asked of this device."""

    name: str
    asked: str
    reached: str
    met: bool | None
    why: str = ""

    @property
    def verdict(self) -> str:
        return {True: "met", False: "not met", None: self.why}[self.met]


def goals(figures: Sequence[Figures], peak: float | None) -> list[Goal]:
    """What was to be reached, as far as it has been measured.

    Args:
        peak: TFLOP/s of dense bf16 of the device; None if unknown.
    """
    found: list[Goal] = []
    for contest in contests(figures):
        where = f"{contest.model}, {contest.mode}"
        if contest.mode == "compiled":
            found.append(_mfu_goal(where, contest.mfu(OURS, peak), peak))
        found.append(_same(where, [contest.deviation(kind) for kind in (BARE, OURS)]))
        for base, least in ((TRAINER, TRAINER_GOAL), (BARE, BARE_GOAL)):
            name = f"{where}: speed of {OURS} to that of {base}"
            found.append(_compared(name, contest.ratios(OURS, base), ">=", least))
        name = f"{where}: peak memory of a step to that of {TRAINER}"
        found.append(_compared(name, contest.ratios(OURS, TRAINER, "peak_bytes"), "<=", 1.0))
    for each in figures:
        if each["table"] == "adjusting":
            used = each["run_percent"]
            met = None if used is None else used <= each["asked_percent"]
            reached = UNKNOWN if used is None else f"{used:.1f} %"
            name = f"{each['model']}: memory after adjust_batch_size"
            found.append(Goal(name, f"<= {each['asked_percent']:g} %", reached, met, "not measured on a CPU"))
    return found


def _mfu_goal(where: str, mfu: float | None, peak: float | None) -> Goal:
    name, asked = f"{where}: MFU of {OURS}", f">= {MFU_GOAL:.0f} % on an H100-class card"
    if mfu is None or peak is None:
        return Goal(name, asked, UNKNOWN, None, "unknown: say --peak" if peak is None else "not measured")
    if peak < H100_CLASS:
        return Goal(name, asked, f"{mfu:.1f} %", None, "a smaller card")
    return Goal(name, asked, f"{mfu:.1f} %", mfu >= MFU_GOAL)


def _same(where: str, deviations: Sequence[float | None]) -> Goal:
    """What has not trained the same cannot be compared."""
    name, asked = f"{where}: loss curves to that of {TRAINER}", f"within {SAME:.0%}"
    known = [deviation for deviation in deviations if deviation is not None]
    if not known:
        return Goal(name, asked, UNKNOWN, None, "not measured")
    return Goal(name, asked, f"{max(known):.1e}", max(known) <= SAME)


def _compared(name: str, ratios: Sequence[float], sign: Literal[">=", "<="], bound: float) -> Goal:
    """The median, judged with as many digits as the goal has."""
    asked = f"{sign} {bound:.2f}"
    if not ratios:
        return Goal(name, asked, UNKNOWN, None, "not measured")
    median = statistics.median(ratios)
    rounded = round(median, 2)
    return Goal(name, asked, f"{median:.3f}", rounded >= bound if sign == ">=" else rounded <= bound)
