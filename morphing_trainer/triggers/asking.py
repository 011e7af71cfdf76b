"""What a trigger, or a part of it, needs or names."""

from __future__ import annotations

from morphing_trainer.triggers.base import Trigger
from morphing_trainer.triggers.counted import AtTokens
from morphing_trainer.triggers.learned import RankUseAbove
from morphing_trainer.triggers.nested import AllOf, AnyOf, Composite, InStage


def needs_adapters(trigger: Trigger) -> bool:
    """Whether a trigger can only fire where there are adapters."""
    match trigger:
        case RankUseAbove():
            return True
        case InStage(then=then):
            return then is not None and needs_adapters(then)
        case AllOf(parts=parts):
            return any(needs_adapters(part) for part in parts)
        case AnyOf(parts=parts):
            return all(needs_adapters(part) for part in parts)
    return False


def needs_analysis(trigger: Trigger) -> bool:
    """Whether a trigger, or a part of it, asks what an analysis finds."""
    match trigger:
        case RankUseAbove():
            return True
        case InStage(then=then):
            return then is not None and needs_analysis(then)
        case Composite(parts=parts):
            return any(needs_analysis(part) for part in parts)
    return False


def counts_tokens(trigger: Trigger) -> bool:
    """Whether a trigger, or a part of it, waits for a number of tokens."""
    match trigger:
        case AtTokens():
            return True
        case InStage(then=then):
            return then is not None and counts_tokens(then)
        case Composite(parts=parts):
            return any(counts_tokens(part) for part in parts)
    return False


def stages_named(trigger: Trigger) -> list[str]:
    """The stages that a trigger speaks of."""
    match trigger:
        case InStage(name=name, then=then):
            return [name, *(stages_named(then) if then else [])]
        case Composite(parts=parts):
            return [name for part in parts for name in stages_named(part)]
    return []
