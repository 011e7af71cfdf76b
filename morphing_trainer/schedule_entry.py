"""What a schedule is made of: entries, and where they were read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from morphing_trainer.operations import Operation
from morphing_trainer.operations.base import Count, Steps
from morphing_trainer.triggers import Trigger

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Place:
    """Where an operation stands in the list of a schedule.

    Attributes:
        item: index in the list.
        part: index in the item's own list, where the item is a group.
        round: which repetition of the item, from 1; None where it does not repeat.
    """

    item: int
    part: int | None = None
    round: int | None = None

    @property
    def path(self) -> Path:
        return (self.item,) if self.part is None else (self.item, "operations", self.part)

    def words(self, operation: Any = None) -> str:
        """`entry 3, operation 2 (stack_layers), round 4`, as far as it applies."""
        part = "" if self.part is None else f", operation {self.part + 1}"
        name = f" ({operation})" if operation else ""
        return f"entry {self.item + 1}{part}{name}" + ("" if self.round is None else f", round {self.round}")


@dataclass(frozen=True)
class Source:
    """Where a schedule was read from, to locate problems. `base` is the path of the list inside the document."""

    name: str
    lines: Mapping[Path, int] = field(default_factory=dict)
    base: Path = ()

    def where(self, path: Path, *labels: str) -> str:
        line = next((self.lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self.lines), None)
        place = self.name if line is None else f"{self.name}:{line}"
        return ": ".join([place, ", ".join(labels)]) if labels else place

    def entry(self, place: Place, operation: Any, *fields: str | int) -> str:
        """Where field `fields` of the operation at `place` stands, in words."""
        labels = [".".join(str(part) for part in fields)] if fields else []
        return self.where((*self.base, *place.path, *fields), place.words(operation), *labels)


class GuardTerms(BaseModel):
    """What must hold of the evaluation loss after an operation, and what happens if it does not.

    Attributes:
        max_loss_increase: how far the loss may stay above the one right before the operation, in nats.
        within_steps: optimizer steps in which it must have come back so far.
        otherwise: the run goes back to the state from before, or ends.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    max_loss_increase: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    within_steps: Count
    otherwise: Literal["rollback", "stop"] = "rollback"

    def describe(self) -> str:
        """The guard in words, behind the words of a trigger."""
        steps = "1 step" if self.within_steps == 1 else f"{self.within_steps} steps"
        ending = "" if self.otherwise == "rollback" else ", else stop"
        return f"guarded: +{self.max_loss_increase:g} in {steps}{ending}"


class Terms(BaseModel):
    """What may stand in an entry beside the operation's own fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    trigger_loss: Annotated[float, Field(ge=0)] | None = None
    max_wait_iters: Steps | None = None
    reevaluate: bool = False
    guard: GuardTerms | None = None
    desc: str | None = None
    completed: bool = False


@dataclass(frozen=True)
class Entry:
    """One operation of a schedule and when it is due.

    Attributes:
        operation: what is done.
        trigger: when.
        terms: the entry's other fields as they were written.
        when: whether the trigger was written as a `when:` (else as `trigger_loss` and `max_wait_iters`).
        place: where it was written; says nothing of what it does, so entries are equal without it.
        source: the file, where it is not the one of the whole schedule.
    """

    operation: Operation
    trigger: Trigger
    terms: Terms
    when: bool = False
    place: Place = field(default=Place(0), compare=False)
    source: Source | None = field(default=None, compare=False)

    @property
    def reevaluate(self) -> bool:
        return self.terms.reevaluate

    @property
    def guard(self) -> GuardTerms | None:
        return self.terms.guard

    def described(self) -> str:
        """When it is due, and whether it is guarded, in words."""
        return self.trigger.describe() + (f", {self.guard.describe()}" if self.guard else "")

    @property
    def desc(self) -> str | None:
        return self.terms.desc

    @property
    def completed(self) -> bool:
        return self.terms.completed

    def to_dict(self) -> dict[str, Any]:
        terms = self.terms.model_dump(exclude_defaults=True)
        when = {"when": self.trigger.to_data()} if self.when else {}
        return {**self.operation.to_dict(), **when, **terms}
