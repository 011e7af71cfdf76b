"""The pure core: descriptions of models, lineages between them, and the transplant that follows a lineage."""

from morphing_trainer.lineage.lineage import NEWBORN, AxisMap, Descent, Fill, Lineage, Newborn
from morphing_trainer.lineage.rules import Units, regather, resize
from morphing_trainer.lineage.spec import ModelSpec, architecture_of
from morphing_trainer.lineage.transplant import MOMENT_ORDER, Census, transplant_states, transplant_weights

__all__ = [
    "MOMENT_ORDER",
    "NEWBORN",
    "AxisMap",
    "Census",
    "Descent",
    "Fill",
    "Lineage",
    "ModelSpec",
    "Newborn",
    "Units",
    "architecture_of",
    "regather",
    "resize",
    "transplant_states",
    "transplant_weights",
]
