"""The table itself, what a schedule may write, and the hyper-parameter operations."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, ClassVar, Literal

import pytest

from morphing_trainer.errors import OperationError, ScheduleError
from morphing_trainer.operations import (
    NAMES,
    OPERATIONS,
    ArchitectureOperation,
    HyperparameterOperation,
    MeasuredOperation,
)
from morphing_trainer.schedule import Schedule
from tests.conformance.cases import ARCHITECTURE, BEFORE, MEASURED, SETTINGS, STAGES, without_case
from tests.conformance.common import parsed

WRITTEN = [case.written for case in ARCHITECTURE] + [{"name": name, "value": value} for name, value, _ in SETTINGS]
WRITTEN += [written for written, *_ in MEASURED]
WRITTEN += [{"name": name, "value": value} for name, value in STAGES]
COVERED = (
    [case.written for case in ARCHITECTURE],
    {name for name, *_ in SETTINGS} | {written["name"] for written, *_ in MEASURED} | {name for name, _ in STAGES},
)


def test_an_operation_an_alias_or_an_option_without_case_fails_collection() -> None:
    class Shuffle(ArchitectureOperation):
        family: ClassVar[str] = "Depth"
        aliases: ClassVar[tuple[str, ...]] = ("permute",)
        name: Literal["shuffle"] = "shuffle"
        value: None = None
        how: Literal["once", "twice"] = "once"

    class Halve(HyperparameterOperation):
        family: ClassVar[str] = "Batch"
        name: Literal["halve"] = "halve"
        value: None = None

    assert without_case(OPERATIONS, *COVERED) == []
    assert without_case({"shuffle": Shuffle, "halve": Halve}, *COVERED) == [
        "permute",
        "shuffle",
        "shuffle.how",
        "shuffle.how=twice",
        "halve",
    ]
    without_newborn = [case.written for case in ARCHITECTURE if case.written.get("split") != "newborn"]
    assert without_case(OPERATIONS, without_newborn, COVERED[1]) == [
        "widen_mlp.split=newborn",
        "set_mlp_width.split=newborn",
    ]


def test_the_registry_names_operations_as_schedules_do() -> None:
    for name, operation in OPERATIONS.items():
        assert operation.model_fields["name"].default == name
        assert operation.family
        assert operation.__doc__
    assert NAMES["increase_hidden_dim"] is OPERATIONS["widen_mlp"]
    assert len({id(operation) for operation in OPERATIONS.values()}) == len(OPERATIONS)


@pytest.mark.parametrize("written", WRITTEN, ids=lambda written: f"{written['name']}-{written['value']}")
def test_written_read_and_written_again(written: dict[str, Any]) -> None:
    operation = parsed(written)
    again = parsed(json.loads(json.dumps(operation.to_dict())))
    assert again == operation
    assert type(again) is type(operation)
    assert operation.to_dict()["name"] in OPERATIONS
    options = {key: value for key, value in written.items() if key not in ("name", "value")}
    assert {key: getattr(operation, key) for key in options} == options
    with pytest.raises(ValueError, match="frozen"):
        operation.value = None  # type: ignore[misc]


@pytest.mark.parametrize(("name", "value", "changes"), SETTINGS, ids=lambda part: str(part))
def test_settings_after_an_operation(name: str, value: Any, changes: dict[str, Any]) -> None:
    operation = parsed({"name": name, "value": value})
    assert isinstance(operation, HyperparameterOperation)
    before = replace(BEFORE)
    after = operation.update(before, step=40)
    assert before == BEFORE, "update is pure"
    assert after == replace(BEFORE, **changes)
    assert after != BEFORE
    assert after == operation.update(before, step=40)
    for field, changed in changes.items():
        assert type(getattr(after, field)) is type(changed)


@pytest.mark.parametrize(("written", "measured", "changes"), MEASURED, ids=lambda part: str(part))
def test_settings_after_an_operation_that_measures(
    written: dict[str, Any], measured: dict[str, float], changes: dict[str, Any]
) -> None:
    operation = parsed(written)
    assert isinstance(operation, MeasuredOperation)
    before = replace(BEFORE)
    assert operation.update(before, step=40) == before, "in the dry run nothing is known"
    after = operation.updated(before, measured, processes=2)
    assert before == BEFORE, "updated is pure"
    assert after == replace(BEFORE, **changes) == operation.updated(before, measured, processes=2)
    assert operation.note({**measured, "memory_percent": 41.5}).startswith(
        f"measured: a batch of {measured['batch_size']}"
    )


@pytest.mark.parametrize(
    ("batch", "value", "expected"),
    [(64, 0.5, 32), (64, 0.3, 16), (100, 1, 96), (20, 0.5, 8), (8, 1, 8), (4, 1, 8), (1000, 0.9, 896)],
)
def test_a_relative_batch_is_a_multiple_of_8(batch: int, value: float, expected: int) -> None:
    operation = parsed({"name": "set_batch_size_relative", "value": value})
    assert isinstance(operation, HyperparameterOperation)
    assert operation.update(replace(BEFORE, batch_size=batch), step=0).batch_size == expected


def test_evaluation_settings_that_do_not_exist_cannot_change() -> None:
    without = replace(BEFORE, eval_iters=None, eval_interval=None)
    for name, match in [
        ("change_eval_iters", "eval_iters is not set.*use set_eval_iters"),
        ("change_eval_interval", "no interval; set eval_strategy"),
        ("set_eval_interval", "no interval; set eval_strategy"),
    ]:
        operation = parsed({"name": name, "value": 2})
        assert isinstance(operation, HyperparameterOperation)
        with pytest.raises(OperationError, match=match):
            operation.update(without, step=0)
    setting = parsed({"name": "set_eval_iters", "value": 2})
    assert isinstance(setting, HyperparameterOperation)
    assert setting.update(without, step=0).eval_iters == 2


_FACTORS = [name for name in OPERATIONS if name.startswith("change_")] + ["set_lr", "widen_mlp", "stack_layers"]
_COUNTS = ["set_batch_size", "set_grad_accum", "set_eval_iters", "set_eval_interval", "set_mlp_width"]
BAD: list[tuple[str, Any]] = [
    *((name, value) for name in _FACTORS for value in (0, -2, float("inf"), float("nan"), "2", None, True)),
    *((name, value) for name in _COUNTS for value in (0, -1, 1.5, "3", None, True)),
    *(("set_warmup_iters", value) for value in (-1, 0.5, "3", None)),
    *(("set_batch_size_relative", value) for value in (0, 1.01, -0.5, None)),
    *(("adjust_batch_size", value) for value in (8, [8], {"max_batch": 8}, {"max_batch_size": 7})),
    *(("adjust_batch_size", {"target_vram_percent": value}) for value in (0, -1, 100.5, True, "80", None)),
    *(("adjust_batch_size", {"max_batch_size": value}) for value in (8.5, 0, True, "80", None)),
    *(("advance_stage", value) for value in (1, ["a"], True)),
    *(("reset_lr_schedule", value) for value in (1, "now", False)),
    *(("widen_mlp", value) for value in (1, 0.5, [2])),
    *(("stack_layers", value) for value in (1, 0.99, [], [0], [0, -1], [0, 1.5], "0, 1")),
    *((f"{kind}freeze_layer", value) for kind in ("", "un") for value in (None, "", [], ["attn.0", "blok.1"], 3)),
    *(("reset_optimizer_state", value) for value in ("", [], "attention.0", 0)),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda part: repr(part))
def test_bad_values_are_refused_when_read(name: str, value: Any) -> None:
    with pytest.raises(ScheduleError) as caught:
        Schedule.of([{"name": name, "value": value, "max_wait_iters": 0}])
    (problem,) = caught.value.problems
    assert problem.where.startswith(f"schedule: entry 1 ({name}), value")


@pytest.mark.parametrize(
    ("written", "match"),
    [
        ({"name": "stack_layers", "value": 2, "init": "zero"}, "init.*'copy' or 'identity'"),
        ({"name": "stack_layers", "value": 2, "order": "random"}, "order.*'append' or 'interleave'"),
        ({"name": "widen_mlp", "value": 2, "split": "odd"}, "split.*'uneven', 'even' or 'newborn'"),
        ({"name": "widen_mlp", "value": 2, "noise": -0.1}, "noise.*greater than or equal to 0"),
        ({"name": "widen_mlp", "value": 2, "noise": 2}, "noise.*less than or equal to 1"),
        ({"name": "widen_mlp", "value": 2, "noise": 0.1, "split": "newborn"}, "noise.*leave noise out"),
        ({"name": "widen_mlp", "value": 2, "slpit": "even"}, "slpit.*did you mean 'split'"),
        ({"name": "adjust_batch_size", "keep_effective": 1}, "keep_effective.*a valid boolean"),
        ({"name": "adjust_batch_size", "value": {"max_batch": 8}}, "did you mean 'max_batch_size'"),
        ({"name": "stack_layers"}, "value.*is missing"),
        ({"name": "stack_layer", "value": 2}, "did you mean 'stack_layers'"),
    ],
    ids=lambda part: "-".join(map(str, part.values())) if isinstance(part, dict) else "",
)
def test_bad_options_are_refused_when_read(written: dict[str, Any], match: str) -> None:
    with pytest.raises(ScheduleError, match=match):
        parsed(written)
