"""The optimizer's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from morphing_trainer.lineage.lineage import Descent, Lineage
from morphing_trainer.operations.base import ArchitectureOperation, Morph
from morphing_trainer.operations.components import Components, resolve

if TYPE_CHECKING:
    import torch

    from morphing_trainer.lineage import ModelSpec


class ResetOptimizerState(ArchitectureOperation):
    """Moments and step count back to zero, of the whole model or of the named components.

    `step` goes with the moments: zeroed moments under an old step count would make the first updates up to 6.6 times
    the learning rate (Adam's bias correction would take the zeros for measurements).
    """

    family: ClassVar[str] = "Optimizer"
    name: Literal["reset_optimizer_state"] = "reset_optimizer_state"
    value: Components | None = None

    def morph(self, spec: ModelSpec, rng: torch.Generator) -> Morph:
        names = frozenset(spec.shapes)
        chosen = names if self.value is None else frozenset().union(*resolve(spec, self.value).values())
        origins = {name: Descent(name, moments="newborn" if name in chosen else "carried") for name in spec.shapes}
        return Morph(spec, Lineage(origins), preserving=True)
