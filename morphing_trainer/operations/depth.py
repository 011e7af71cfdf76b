"""Depth: more blocks. Sources: G_stack (Du et al. 2024), LLaMA-Pro (Wu et al. 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from morphing_trainer.errors import OperationError
from morphing_trainer.operations.base import ArchitectureOperation, GrowthFactor, Morph, whole

if TYPE_CHECKING:
    import torch

    from morphing_trainer.lineage import ModelSpec

LayerIndex = Annotated[int, BeforeValidator(whole), Field(ge=0)]


MOST_LAYERS = 1_000
"""Deeper than any model; a slip of the finger must not keep the dry run busy for hours: a layer takes it 1 ms."""


class StackLayers(ArchitectureOperation):
    """Repeat the blocks until the model is `value` times as deep, or take those that a list names, e.g. [0, 0, 1, 1].

    `init: copy` (G_stack): new block i is a copy of block i mod L, moments too. The loss jumps and recovers.
    `init: identity` (LLaMA-Pro): new blocks write zeros to the residual stream, so the function is unchanged; their
    moments start newborn. `order: append` stacks the blocks as a whole, 0 1 0 1 (what the 7B results used);
    `interleave` puts every copy behind its original, 0 0 1 1.

    What is frozen stays frozen in copies; identity blocks are trained, except weights under an adapter, which follow
    their adapter.

    Limits: depth times factor must be a whole number; not for models whose attention scales with the layer's index.
    """

    model_config = ConfigDict(
        json_schema_extra={  # as `_needs_factor` has it
            "if": {"properties": {"value": {"type": "array"}}},
            "then": {"properties": {"order": {"const": "append"}}},
        }
    )

    family: ClassVar[str] = "Depth"
    name: Literal["stack_layers"] = "stack_layers"
    value: GrowthFactor | Annotated[list[LayerIndex], Field(min_length=2)]
    init: Literal["copy", "identity"] = "copy"
    order: Literal["append", "interleave"] = "append"

    @field_validator("order")
    @classmethod
    def _needs_factor(cls, order: str, info: ValidationInfo) -> str:
        if order != "append" and isinstance(info.data.get("value"), list):
            raise ValueError("has no meaning beside a list of layers, which says the order itself; leave it out")
        return order

    def morph(self, spec: ModelSpec, rng: torch.Generator) -> Morph:
        from morphing_trainer.lineage import regather

        if reason := spec.architecture.depends_on_depth(spec.config):
            raise OperationError(reason)
        sources = self._sources(spec.layers)
        originals = {sources.index(layer) for layer in range(spec.layers) if layer in sources}
        identity = set(range(len(sources))) - originals if self.init == "identity" else set()
        new = spec.restacked(sources)
        lineage = regather(spec, new, sources, identity)
        return Morph(new.evolve(lineage.inherit(spec.frozen)), lineage, preserving=self.init == "identity")

    def _sources(self, layers: int) -> list[int]:
        """Old layer behind each new one."""
        if isinstance(self.value, list):
            return self._listed(self.value, layers)
        depth = round(layers * self.value)
        _check_depth(depth)
        if abs(depth - layers * self.value) > 1e-6:
            raise OperationError(
                f"{layers} layers times {self.value} is {layers * self.value:g}, not a whole number of layers; "
                f"use {depth / layers:g} for {depth} layers, or a list of source layers"
            )
        if self.order == "interleave":
            return [layer * layers // depth for layer in range(depth)]
        return [layer % layers for layer in range(depth)]

    def _listed(self, sources: list[int], layers: int) -> list[int]:
        _check_depth(len(sources))
        if (highest := max(sources)) >= layers:
            raise OperationError(f"the list names layer {highest}, but the model has layers 0 to {layers - 1}")
        if len(sources) <= layers:
            raise OperationError(f"the list has {len(sources)} layers, but must have more than the model's {layers}")
        firsts = [layer for position, layer in enumerate(sources) if layer not in sources[:position]]
        if self.init == "identity" and firsts != list(range(layers)):
            raise OperationError(
                f"init: identity keeps the function only if every old layer comes once in its order before its copies; "
                f"the list's layers first appear as {firsts}, expected {list(range(layers))}"
            )
        return sources


def _check_depth(depth: int) -> None:
    if depth > MOST_LAYERS:
        raise OperationError(f"{depth} layers are more than can be meant; the limit is {MOST_LAYERS}")
