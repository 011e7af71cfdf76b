"""Which parts are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from morphing_trainer.errors import OperationError
from morphing_trainer.lineage.lineage import Descent, Lineage
from morphing_trainer.operations.base import ArchitectureOperation, Morph
from morphing_trainer.operations.components import Components, resolve

if TYPE_CHECKING:
    import torch

    from morphing_trainer.lineage import ModelSpec


class FreezeLayer(ArchitectureOperation):
    """Stop training components: no gradient, out of the optimizer, so that weight decay stops too.

    Their moments are dropped. A head that is tied to the embedding can only be frozen together with it.
    Source: layer freezing as in FreezeOut (Brock et al. 2017); LLaMA-Pro (Wu et al. 2024) freezes the old blocks.
    """

    family: ClassVar[str] = "Freezing"
    name: Literal["freeze_layer"] = "freeze_layer"
    value: Components

    def morph(self, spec: ModelSpec, rng: torch.Generator) -> Morph:
        chosen = resolve(spec, self.value)
        if spec.config.tie_word_embeddings and "lm_head" in chosen and "wte" not in chosen:
            raise OperationError(
                "'lm_head' shares its weights with 'wte' and cannot be frozen alone; freeze ['wte', 'lm_head'] together"
            )
        frozen = spec.frozen.union(*chosen.values())
        new = spec.evolve(frozen)
        if new.trainable == 0:
            raise OperationError("nothing would be left to train; leave at least one component unfrozen")
        already = [name for name, parameters in chosen.items() if parameters <= spec.frozen]
        note = f"already frozen: {', '.join(already)}" if already else ""
        return Morph(new, Lineage.unchanged(new.shapes), preserving=True, note=note)


class UnfreezeLayer(ArchitectureOperation):
    """Train components again. Their moments start newborn, with a step count of their own."""

    family: ClassVar[str] = "Freezing"
    name: Literal["unfreeze_layer"] = "unfreeze_layer"
    value: Components

    def morph(self, spec: ModelSpec, rng: torch.Generator) -> Morph:
        chosen = resolve(spec, self.value)
        already = [name for name, parameters in chosen.items() if not parameters & spec.frozen]
        note = f"not frozen before: {', '.join(already)}" if already else ""
        new = spec.evolve(spec.frozen.difference(*chosen.values()))
        thawed = spec.frozen - new.frozen
        origins = {name: Descent(name, moments="newborn" if name in thawed else "carried") for name in new.shapes}
        return Morph(new, Lineage(origins), preserving=True, note=note)
