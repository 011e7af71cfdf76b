"""What an operation is: a small frozen class with validated fields and one pure method.

Operations import torch where they change a model, not before: schedule files are checked without it, in no time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from morphing_trainer.settings import Settings

if TYPE_CHECKING:
    import torch

    from morphing_trainer.lineage import Lineage, ModelSpec
    from morphing_trainer.memory.finding import Probe


@dataclass(frozen=True)
class Morph:
    """What an architecture operation returns.

    Attributes:
        spec: the new model's description.
        lineage: where each of its parameters comes from.
        preserving: the function stays as it was (up to rounding).
        note: what a reader of the journal should know.
        warning: why the operation changes nothing, though somebody asked for it.
    """

    spec: ModelSpec
    lineage: Lineage
    preserving: bool
    note: str = ""
    warning: str = ""


class Operation(BaseModel):
    """Base of all operations. The fields are what stands in the schedule beside the trigger."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    family: ClassVar[str]
    """Heading in the reference."""

    aliases: ClassVar[tuple[str, ...]] = ()

    name: str
    value: Any

    def to_dict(self) -> dict[str, Any]:
        """The operation as it stands in a schedule; options at their defaults are left out."""
        options = self.model_dump(exclude={"name", "value"}, exclude_defaults=True)
        return {"name": self.name, "value": self.model_dump()["value"], **options}


class HyperparameterOperation(Operation):
    """Changes settings of the training, never the model."""

    def update(self, settings: Settings, step: int) -> Settings:
        """The settings after the operation, applied at optimizer step `step`.

        Raises:
            OperationError: if it does not fit these settings.
        """
        raise NotImplementedError


class MeasuredOperation(HyperparameterOperation):
    """Changes settings by something that only a trial on the live model tells.

    What was measured is kept in the journal and in every checkpoint: a resumed run takes it from there and measures
    nothing. Before it is measured, in the dry run, the settings stay as they are.
    """

    def measure(self, probe: Probe) -> dict[str, float]:
        """What is found out on the live model, as plain JSON; the same on every rank.

        Raises:
            OperationError: if there is nothing that would do.
        """
        raise NotImplementedError

    def updated(self, settings: Settings, measured: Mapping[str, float], processes: int) -> Settings:
        """The settings after the operation.

        Args:
            measured: what `measure` returned.
            processes: of this run.
        """
        raise NotImplementedError

    def note(self, measured: Mapping[str, float]) -> str:
        """What was measured, in words."""
        raise NotImplementedError

    def update(self, settings: Settings, step: int) -> Settings:
        """The settings as they are: what will be measured is not known."""
        return settings


class ArchitectureOperation(Operation):
    """Changes the model's description, or what of it is trained; optimizer state follows by lineage."""

    def morph(self, spec: ModelSpec, rng: torch.Generator) -> Morph:
        """The new description and the lineage from the old one. Random choices are drawn from `rng` alone.

        Raises:
            OperationError: if it does not fit this model.
        """
        raise NotImplementedError


def draw_seed(rng: torch.Generator) -> int:
    """The seed of further draws."""
    import torch

    return int(torch.randint(2**62, (1,), generator=rng))


def _positive(value: float) -> float:
    if not 0 < value < float("inf"):
        raise ValueError(f"must be a positive, finite number, is {value}")
    return value


def _growing(value: float) -> float:
    if not 1 < value < float("inf"):
        raise ValueError(f"must be a finite factor above 1, is {value}")
    return value


def whole(value: object) -> object:
    """1e6 is how people write a million steps: floats without a fraction pass as integers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Factor = Annotated[float, AfterValidator(_positive), WithJsonSchema({"type": "number", "exclusiveMinimum": 0})]
"""A positive, finite factor."""

GrowthFactor = Annotated[float, AfterValidator(_growing), WithJsonSchema({"type": "number", "exclusiveMinimum": 1})]
"""A finite factor above 1."""

Count = Annotated[int, BeforeValidator(whole), Field(ge=1)]
"""A whole number of at least 1."""

Steps = Annotated[int, BeforeValidator(whole), Field(ge=0)]
"""A whole number of optimizer steps."""

Nothing = Literal[None]
"""The value of an operation that takes none."""
