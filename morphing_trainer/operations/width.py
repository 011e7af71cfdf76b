"""Width of the MLP. Source: Net2WiderNet (Chen et al. 2016), with uneven shares."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from morphing_trainer.errors import OperationError
from morphing_trainer.lineage.lineage import Fill
from morphing_trainer.operations.base import ArchitectureOperation, Count, GrowthFactor, Morph, draw_seed

if TYPE_CHECKING:
    import torch

    from morphing_trainer.lineage import ModelSpec, Units

MOST_UNITS = 2**23
"""In all layers together. Wider than any model; a slip of the finger must not cost the dry run hours or gigabytes."""


class _Widening(ArchitectureOperation):
    """What the relative and the absolute operation share."""

    model_config = ConfigDict(
        json_schema_extra={  # as `_needs_copies` has it
            "if": {"required": ["split"], "properties": {"split": {"const": "newborn"}}},
            "then": {"properties": {"noise": {"const": 0}}},
        }
    )

    family: ClassVar[str] = "Width"
    split: Literal["uneven", "even", "newborn"] = "uneven"
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0

    @field_validator("noise")
    @classmethod
    def _needs_copies(cls, noise: float, info: ValidationInfo) -> float:
        if noise and info.data.get("split") == "newborn":
            raise ValueError("disturbs copies, and split: newborn makes none; leave noise out")
        return noise

    def _target(self, spec: ModelSpec) -> int:
        raise NotImplementedError

    def morph(self, spec: ModelSpec, rng: torch.Generator) -> Morph:
        from morphing_trainer.lineage import resize, widened

        target = self._target(spec)
        if target * spec.layers > MOST_UNITS:
            most = MOST_UNITS // spec.layers
            raise OperationError(
                f"{target} MLP units are more than can be meant; the limit is {most} with {spec.layers} layers"
            )
        new = spec.evolve(mlp=target)
        units = [self._disturbed(widened(spec.mlp, target, self.split, rng), rng) for _ in range(spec.layers)]
        fill = Fill(std=float(getattr(spec.config, "initializer_range", 0.02)), seed=draw_seed(rng))
        lineage = resize(spec, new, "mlp", units, fill)
        return Morph(new.evolve(lineage.inherit(spec.frozen)), lineage, preserving=self.noise == 0)

    def _disturbed(self, units: Units, rng: torch.Generator) -> Units:
        return replace(units, noise=Fill(self.noise, draw_seed(rng))) if self.noise else units


class WidenMlp(_Widening):
    """Make the MLP `value` times as wide.

    Every new unit is a copy of an old one; the copies of one unit share its output in parts that add up to 1, so the
    function is unchanged. `split: uneven` (default) draws unequal parts, because equal copies get equal gradients and
    never become different; `even` is the plain Net2Wider split; `newborn` adds random units that are read as
    zero. `noise` disturbs the copies by that fraction of the weights' standard deviation; the function then changes.
    """

    aliases: ClassVar[tuple[str, ...]] = ("increase_hidden_dim",)
    name: Literal["widen_mlp"] = "widen_mlp"
    value: GrowthFactor

    def _target(self, spec: ModelSpec) -> int:
        target = round(spec.mlp * self.value)
        if abs(target - spec.mlp * self.value) > 1e-6:
            raise OperationError(
                f"{spec.mlp} MLP units times {self.value} is {spec.mlp * self.value:g}, not a whole number; "
                f"use set_mlp_width {target}"
            )
        return target


class SetMlpWidth(_Widening):
    """Make the MLP `value` units wide, at least as wide as it is. Options as in `widen_mlp`."""

    name: Literal["set_mlp_width"] = "set_mlp_width"
    value: Count

    def _target(self, spec: ModelSpec) -> int:
        if self.value < spec.mlp:
            raise OperationError(f"the MLP has {spec.mlp} units already and cannot shrink to {self.value}")
        return self.value
