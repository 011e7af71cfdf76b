"""Where the time of a run went, in parts: see `run.timing`."""

from __future__ import annotations

from collections.abc import Mapping

PARTS = ("forward/backward", "data", "optimizer", "evaluation", "morphs", "saving", "other")
"""What is told apart. "evaluation" includes the analysis; "other" is logging, agreeing, and what lies between."""


def shares(profile: Mapping[str, float]) -> dict[str, float]:
    """Part -> share of the whole, from 0 to 1, the parts that took no time left out; empty before any time."""
    whole = sum(profile.values())
    return {part: seconds / whole for part, seconds in profile.items() if seconds > 0} if whole > 0 else {}
