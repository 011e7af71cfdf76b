"""The pure core: descriptions of models, lineages between them, and the transplant that follows a lineage.

The names are loaded when they are first used: what only reads schedules needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from morphing_trainer.lineage.copies import widened
    from morphing_trainer.lineage.factors import cut, lost
    from morphing_trainer.lineage.lineage import (
        NEWBORN,
        AxisMap,
        Descent,
        Fill,
        Lineage,
        Merged,
        Newborn,
        Origin,
        Product,
        Truncated,
    )
    from morphing_trainer.lineage.lora import readapt
    from morphing_trainer.lineage.rules import Units, regather, resize
    from morphing_trainer.lineage.sites import AdapterChange, Site
    from morphing_trainer.lineage.spec import ModelSpec, architecture_of
    from morphing_trainer.lineage.transplant import (
        MOMENT_ORDER,
        Census,
        has_no_rule,
        transplant_states,
        transplant_weights,
    )

_HOME = {
    "AdapterChange": "sites",
    "AxisMap": "lineage",
    "Census": "transplant",
    "Descent": "lineage",
    "Fill": "lineage",
    "Lineage": "lineage",
    "MOMENT_ORDER": "transplant",
    "Merged": "lineage",
    "ModelSpec": "spec",
    "NEWBORN": "lineage",
    "Newborn": "lineage",
    "Origin": "lineage",
    "Product": "lineage",
    "Site": "sites",
    "Truncated": "lineage",
    "Units": "rules",
    "architecture_of": "spec",
    "cut": "factors",
    "has_no_rule": "transplant",
    "lost": "factors",
    "readapt": "lora",
    "regather": "rules",
    "resize": "rules",
    "transplant_states": "transplant",
    "transplant_weights": "transplant",
    "widened": "copies",
}

__all__ = [
    "MOMENT_ORDER",
    "NEWBORN",
    "AdapterChange",
    "AxisMap",
    "Census",
    "Descent",
    "Fill",
    "Lineage",
    "Merged",
    "ModelSpec",
    "Newborn",
    "Origin",
    "Product",
    "Site",
    "Truncated",
    "Units",
    "architecture_of",
    "cut",
    "has_no_rule",
    "lost",
    "readapt",
    "regather",
    "resize",
    "transplant_states",
    "transplant_weights",
    "widened",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
