"""When an operation is due: the conditions that may stand under `when:`."""

from __future__ import annotations

from collections.abc import Mapping

from morphing_trainer.triggers.asking import counts_tokens, needs_adapters, needs_analysis, stages_named
from morphing_trainer.triggers.base import Clock, Trigger, ValuedTrigger
from morphing_trainer.triggers.counted import AtShare, AtStep, AtTokens, Waited
from morphing_trainer.triggers.learned import LossBelow, Plateau, RankUseAbove
from morphing_trainer.triggers.nested import AllOf, AnyOf, Composite, InStage

VALUED: dict[str, type[ValuedTrigger]] = {
    entry.kind: entry for entry in (LossBelow, Waited, AtStep, AtShare, AtTokens, RankUseAbove)
}
COMPOSITE: Mapping[str, type[Composite]] = {entry.kind: entry for entry in (AllOf, AnyOf)}
KINDS: tuple[str, ...] = (*VALUED, Plateau.kind, InStage.kind, *COMPOSITE)
"""What may stand under `when:`, of what comes with the library."""

__all__ = [
    "COMPOSITE",
    "KINDS",
    "VALUED",
    "AllOf",
    "AnyOf",
    "AtShare",
    "AtStep",
    "AtTokens",
    "Clock",
    "Composite",
    "InStage",
    "LossBelow",
    "Plateau",
    "RankUseAbove",
    "Trigger",
    "ValuedTrigger",
    "Waited",
    "counts_tokens",
    "needs_adapters",
    "needs_analysis",
    "stages_named",
]
