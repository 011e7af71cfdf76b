"""Width of the MLP. Source: Net2WiderNet (Chen et al. 2016), with uneven shares."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field, ValidationInfo, field_validator
from torch import Tensor

from morphing_trainer.errors import OperationError
from morphing_trainer.lineage import NEWBORN, Fill, ModelSpec, Units, resize
from morphing_trainer.operations.base import ArchitectureOperation, Count, GrowthFactor, Morph, draw_seed

MOST_UNITS = 2**23
"""In all layers together. Wider than any model; a slip of the finger must not cost the dry run hours or gigabytes."""

Split = Literal["uneven", "even", "newborn"]


class _Widening(ArchitectureOperation):
    """What the relative and the absolute operation share."""

    model_config = ConfigDict(
        json_schema_extra={  # as `_needs_copies` has it
            "if": {"required": ["split"], "properties": {"split": {"const": "newborn"}}},
            "then": {"properties": {"noise": {"const": 0}}},
        }
    )

    family: ClassVar[str] = "Width"
    split: Split = "uneven"
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
        target = self._target(spec)
        if target * spec.layers > MOST_UNITS:
            most = MOST_UNITS // spec.layers
            raise OperationError(
                f"{target} MLP units are more than can be meant; the limit is {most} with {spec.layers} layers"
            )
        new = spec.evolve(mlp=target)
        units = [self._units(spec.mlp, target, rng) for _ in range(spec.layers)]
        fill = Fill(std=float(spec.config.initializer_range), seed=draw_seed(rng))
        lineage = resize(spec, new, "mlp", units, fill)
        return Morph(new.evolve(lineage.inherit(spec.frozen)), lineage, preserving=self.noise == 0)

    def _units(self, old: int, new: int, rng: torch.Generator) -> Units:
        if self.split == "newborn":
            source = torch.cat([torch.arange(old), torch.full((new - old,), NEWBORN)])
            return Units(source, torch.ones(new, dtype=torch.float64))
        source = _balanced(old, new, rng)
        share = _even(source, old) if self.split == "even" else _uneven(source, old, rng)
        return Units(source, share, Fill(self.noise, draw_seed(rng)) if self.noise else None)


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


def _balanced(old: int, new: int, rng: torch.Generator) -> Tensor:
    """(new,) sources: the old units, then copies drawn so that no unit has two more copies than another."""
    rounds = [torch.randperm(old, generator=rng) for _ in range(-(-(new - old) // old))]
    return torch.cat([torch.arange(old), *rounds])[:new]


def _even(source: Tensor, old: int) -> Tensor:
    return 1.0 / torch.bincount(source, minlength=old)[source].double()


def _uneven(source: Tensor, old: int, rng: torch.Generator) -> Tensor:
    """Shares in proportions spread over 0.8 ... 1.2, with jitter: no two copies of a unit get nearly the same.

    The jitter is at most an eighth of the distance between neighbours, so that it never brings two together.
    """
    copies = torch.bincount(source, minlength=old)[source]
    rank = torch.zeros_like(source)
    for position in range(0, len(source), old):  # the k-th round of `_balanced` holds every unit's k-th copy
        rank[position : position + old] = position // old
    spread = 2.0 * rank / (copies - 1).clamp(min=1) - 1.0
    # Which copy gets the larger part is drawn per unit; otherwise originals would always shrink more.
    sign = torch.randint(2, (old,), generator=rng)[source] * 2.0 - 1.0
    jitter = (torch.rand(len(source), generator=rng, dtype=torch.float64) * 0.1 - 0.05) / (copies - 1).clamp(min=1)
    weight = torch.where(copies > 1, 1.0 + 0.2 * sign * spread.double() + jitter, 1.0)
    total = torch.zeros(old, dtype=torch.float64).index_add_(0, source, weight)
    return weight / total[source]
