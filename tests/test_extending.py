"""Operations, conditions and families of one's own: used by schedules, checked, refused where they would do harm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch

from morphing_trainer import morph, register
from morphing_trainer.architectures import ARCHITECTURES, GPT2
from morphing_trainer.cli import morph as command
from morphing_trainer.errors import ConfigError, OperationError, ScheduleError
from morphing_trainer.lineage import ModelSpec, regather
from morphing_trainer.operations import NAMES, OPERATIONS, ArchitectureOperation, HyperparameterOperation, Morph
from morphing_trainer.operations.base import Count, Factor
from morphing_trainer.run.journal import read_journal
from morphing_trainer.schedule import Schedule
from morphing_trainer.schemas.building import schedule_schema
from morphing_trainer.settings import Settings
from morphing_trainer.triggers import VALUED, Clock, ValuedTrigger
from tests.support import same, tiny_model, trainer, weights

REGISTRIES: tuple[dict[str, Any], ...] = (OPERATIONS, NAMES, VALUED, ARCHITECTURES)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """What a test registers is gone behind it."""
    kept = [dict(registry) for registry in REGISTRIES]
    yield
    for registry, before in zip(REGISTRIES, kept, strict=True):
        registry.clear()
        registry.update(before)


class DropLayers(ArchitectureOperation):
    """Take the last `value` blocks away."""

    family: ClassVar[str] = "Depth"
    aliases: ClassVar[tuple[str, ...]] = ("trim_layers",)
    name: Literal["drop_layers"] = "drop_layers"
    value: Count

    def morph(self, spec: ModelSpec, rng: torch.Generator) -> Morph:
        if self.value >= spec.layers:
            raise OperationError(f"{self.value} of {spec.layers} layers cannot go; leave at least one")
        kept = range(spec.layers - self.value)
        new = spec.restacked(kept)
        return Morph(new, regather(spec, new, kept), preserving=False)


class HalveRate(HyperparameterOperation):
    """Halve the learning rate."""

    family: ClassVar[str] = "Learning rate"
    name: Literal["halve_rate"] = "halve_rate"
    value: None = None

    def update(self, settings: Settings, step: int) -> Settings:
        return Settings(**{**settings.to_dict(), "learning_rate": settings.learning_rate / 2})


class AtEpoch(ValuedTrigger):
    """The run has gone through its data so many times."""

    kind: ClassVar[str] = "at_epoch"
    value: Factor

    def due(self, clock: Clock) -> str | None:
        return f"epoch {clock.epoch:.2f}" if clock.epoch >= self.value else None

    def describe(self) -> str:
        return f"at epoch {self.value:g}"

    def progress(self, clock: Clock) -> str:
        return f"epoch {clock.epoch:.2f} of {self.value:g}"


SCHEDULE = [
    {"name": "drop_layers", "value": 1, "when": {"at_epoch": 0.2}},
    {"name": "halve_rate", "max_wait_iters": 2},
]


def test_a_run_uses_them_and_resumes_to_the_bit(tmp_path: Path) -> None:
    for part in (DropLayers, HalveRate, AtEpoch):
        assert register(part) is part
    options = {"save_strategy": "steps", "save_steps": 7, "max_steps": 10}
    run = trainer(tmp_path / "whole", SCHEDULE, tiny_model(n_layer=3), **options)
    run.train()
    assert run.model.config.n_layer == 2
    events = [event for event in read_journal(tmp_path / "whole" / "journal.jsonl") if event["event"] == "operation"]
    assert [(event["step"], event["record"]["trigger"]) for event in events] == [
        (6, "epoch 0.24"),
        (8, "waited 2 steps"),
    ]
    again = trainer(tmp_path / "whole", SCHEDULE, tiny_model(n_layer=3), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-7"))
    assert same(weights(again), weights(run))


def test_what_is_not_registered_is_unknown() -> None:
    with pytest.raises(ScheduleError, match="unknown operation 'drop_layers'"):
        Schedule.of([{"name": "drop_layers", "value": 1, "max_wait_iters": 0}])
    with pytest.raises(ScheduleError, match="unknown condition 'at_epoch'"):
        Schedule.of([{"name": "set_lr", "value": 1, "when": {"at_epoch": 1}}])


def test_faults_are_told_as_of_others() -> None:
    for part in (DropLayers, AtEpoch):
        register(part)
    faulty = [{"name": "drop_layers", "value": 0, "max_wait_iters": 0}, {"name": "drop_layer", "value": 1}]
    with pytest.raises(ScheduleError) as told:
        Schedule.of([*faulty, {"name": "trim_layers", "value": 1, "when": {"any": [{"at_epochs": 1}]}}])
    for words in ("greater than or equal to 1", "did you mean 'drop_layers'?", "did you mean 'at_epoch'?"):
        assert words in str(told.value)
    with pytest.raises(OperationError, match="leave at least one"):
        morph(tiny_model(), {"name": "drop_layers", "value": 2})
    assert morph(tiny_model(), {"name": "trim_layers", "value": 1}).model.config.n_layer == 1


def test_the_reference_and_the_schema_know_them(capsys: pytest.CaptureFixture[str]) -> None:
    for part in (DropLayers, HalveRate, AtEpoch):
        register(part)
    assert command.main(["ops", "drop_layers"]) == 0
    assert command.main(["ops", "at_epoch"]) == 0
    assert command.main(["ops"]) == 0
    told = capsys.readouterr().out
    assert "Take the last `value` blocks away." in told
    assert "The run has gone through its data so many times." in told
    assert "drop_layers" in schedule_schema()["$defs"]
    assert "at_epoch" in schedule_schema()["$defs"]["condition"]["properties"]


def _operation(**body: Any) -> type[Any]:
    given = {"__module__": __name__, "__doc__": "Does it.", "family": "Depth", "__annotations__": {}, **body}
    return type("Other", (ArchitectureOperation,), given)


REFUSED = {
    "nothing of ours": (int, "is nothing that a schedule could use"),
    "an object": ("text", "is nothing that a schedule could use"),
    "no name": (_operation(), "has no name"),
    "a name no schedule could write": (_operation(name="Drop Layers", __annotations__={"name": str}), "has no name"),
    "a name that is taken": (_operation(name="stack_layers", __annotations__={"name": str}), "is taken by StackLayers"),
    "an alias that is taken": (
        _operation(name="other", aliases=("change_lr",), __annotations__={"name": str, "aliases": ClassVar[Any]}),
        "'change_lr' is taken",
    ),
    "no docstring": (_operation(name="other", __doc__=None, __annotations__={"name": str}), "has no docstring"),
    "an option that every entry has": (
        _operation(name="other", guard=1, __annotations__={"name": str, "guard": int}),
        "every entry of a schedule has a field 'guard'",
    ),
    "a condition that is not complete": (
        type("Never", (ValuedTrigger,), {"kind": "never", "__doc__": "Never.", "__module__": __name__}),
        r"has no method due\(\)",
    ),
    "a condition of a taken name": (
        type("Plateau", (AtEpoch,), {"kind": "plateau", "__doc__": "Flat.", "__module__": __name__}),
        "'plateau' is taken",
    ),
    "a family that is there": (replace(GPT2, model_class="Other"), "'gpt2' is taken"),
}


def test_an_operation_without_a_value_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    @register
    class Rest(HyperparameterOperation):
        """Change nothing."""

        family: ClassVar[str] = "Learning rate"
        name: Literal["rest"] = "rest"

    assert command.main(["ops", "rest"]) == 0
    assert command.main(["ops"]) == 0
    assert "Change nothing" in capsys.readouterr().out


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_do_harm_is_refused(name: str) -> None:
    part, told = REFUSED[name]
    before = [dict(registry) for registry in REGISTRIES]
    with pytest.raises(ConfigError, match=told):
        register(part)
    assert [dict(registry) for registry in REGISTRIES] == before


def test_a_cell_may_be_run_again() -> None:
    register(DropLayers)
    again = type(
        "DropLayers", (DropLayers,), {"__doc__": "Anew.", "__module__": __name__, "__qualname__": "DropLayers"}
    )
    register(again)
    assert OPERATIONS["drop_layers"] is NAMES["trim_layers"] is again
    register(again)
