"""What is trained: a target, lengths from scratch, and recipes that end at the target; read from YAML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shape(_Part):
    layers: int
    hidden: int
    heads: int
    mlp: int


class Recipe(_Part):
    """A run that begins smaller than the target, and how it gets there."""

    schedule: list[dict[str, Any]]
    layers: int | None = None
    mlp: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None


class Experiment(_Part):
    """See small.yaml."""

    name: str
    target: Shape
    block_size: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    decay_share: float = Field(gt=0, lt=1)
    steps: int
    seeds: list[int]
    scratch: list[int]
    recipes: Mapping[str, Recipe]


@dataclass(frozen=True)
class Variant:
    """One run, but for its seed.

    Attributes:
        name: as tables show it.
        shape: that it begins with.
        steps: of the whole run.
        batch_size, learning_rate: that it begins with.
        schedule: of operations.
        scratch: it is the target from the start.
    """

    name: str
    shape: Shape
    steps: int
    batch_size: int
    learning_rate: float
    schedule: list[dict[str, Any]]
    scratch: bool

    @property
    def file(self) -> str:
        """The name, for files."""
        words = "".join(letter if letter.isalnum() else " " for letter in self.name).split()
        return "-".join(words).lower()


def load(path: Path) -> Experiment:
    """Read an experiment.

    Raises:
        ValueError: if it is no YAML, or a field is missing, unknown or of another kind.
    """
    try:
        return Experiment.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is no YAML ({error})") from error
    except ValidationError as error:
        places = [(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors()]
        faults = "; ".join(f"{place}: {said}" if place else said for place, said in places)
        raise ValueError(f"{path}: is no experiment ({faults}); see benchmarks/growth/small.yaml") from None


def variants(experiment: Experiment) -> Iterator[Variant]:
    """All that is trained: from scratch first, shortest first."""
    for steps in sorted(experiment.scratch):
        yield _variant(experiment, f"scratch, {steps} steps", Recipe(schedule=[], steps=steps), scratch=True)
    for name, recipe in experiment.recipes.items():
        yield _variant(experiment, name, recipe, scratch=False)


def described(experiment: Experiment, variant: Variant) -> dict[str, Any]:
    """All that decides what comes out of a run, but for the seed, the text and the code."""
    shared = experiment.model_dump(include={"block_size", "warmup_steps", "decay_share"})
    own = {
        key: getattr(variant, key) for key in ("name", "scratch", "steps", "batch_size", "learning_rate", "schedule")
    }
    return {**own, "begins": variant.shape.model_dump(), **shared}


def _variant(experiment: Experiment, name: str, recipe: Recipe, *, scratch: bool) -> Variant:
    steps = recipe.steps or experiment.steps
    sizes = recipe.model_dump(include={"layers", "mlp"}, exclude_none=True)
    return Variant(
        name=name,
        shape=experiment.target.model_copy(update=sizes),
        steps=steps,
        batch_size=recipe.batch_size or experiment.batch_size,
        learning_rate=recipe.learning_rate or experiment.learning_rate,
        schedule=recipe.schedule,
        scratch=scratch,
    )
