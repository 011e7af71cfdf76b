"""The pure core: descriptions of models, lineages between them, and the transplant that follows a lineage."""

from morphing_trainer.lineage.adapters import Site
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
from morphing_trainer.lineage.lora import AdapterChange, readapt
from morphing_trainer.lineage.rules import Units, regather, resize
from morphing_trainer.lineage.spec import ModelSpec, architecture_of
from morphing_trainer.lineage.transplant import MOMENT_ORDER, Census, has_no_rule, transplant_states, transplant_weights

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
]
