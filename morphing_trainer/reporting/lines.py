"""Numbers of a run as one line of text: where its time went, and what an analysis found."""

from __future__ import annotations

from collections.abc import Mapping

from morphing_trainer.reporting.times import shares


def timing_line(profile: Mapping[str, float]) -> str:
    """`forward/backward 71 %, optimizer 12 %, ...`, largest first; empty before any time."""
    found = sorted(shares(profile).items(), key=lambda item: -item[1])
    return ", ".join(f"{part} {percent(share)}" for part, share in found)


def analysis_line(numbers: Mapping[str, float]) -> str:
    """`analysis: rank share attn 82 %, mlp 90 %; ...; adapters use 43 % of their rank`; empty without such numbers."""
    parts = []
    for measure, words in (
        ("rank_share", "rank share"),
        ("drift_start", "drift"),
        ("drift_operation", "since operation"),
    ):
        begin = f"analysis/{measure}_"
        found = {key.removeprefix(begin): value for key, value in numbers.items() if key.startswith(begin)}
        write = percent if measure == "rank_share" else "{:.2g}".format
        if found:
            parts.append(f"{words} " + ", ".join(f"{name} {write(value)}" for name, value in found.items()))
    if "analysis/rank_use" in numbers:
        parts.append(f"adapters use {percent(numbers['analysis/rank_use'])} of their rank")
    return f"analysis: {'; '.join(parts)}" if parts else ""


def percent(share: float) -> str:
    """A share from 0 to 1 in whole percent."""
    return f"{100 * share:.0f} %" if share >= 0.0095 else "< 1 %"
