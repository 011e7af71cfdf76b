"""What the schemas accept is what the readers accept, but for what a schema cannot say."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from morphing_trainer.documents import DocumentError, load_document
from morphing_trainer.operations import OPERATIONS
from morphing_trainer.plans.fields import Part, StageFields
from morphing_trainer.reporting.reference_texts import EXAMPLES
from tests.reliability.mutations import case
from tests.schemas.common import (
    CANNOT_SAY,
    CHANGE,
    STAGE,
    TIMED,
    VALID,
    agree,
    kind_of,
    part,
    refusals,
    told,
    values,
)


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_field_of_each_operation_agrees_with_the_reader(name: str) -> None:
    schema = part(name)
    entry = {"name": name, "value": EXAMPLES[name]["value"], "max_wait_iters": 1}
    fields = [field for field in OPERATIONS[name].model_fields if field != "name"]
    for field in [*fields, "unknown"]:
        for value in values():
            made = {**entry, field: copy.deepcopy(value)}
            agree(schema.is_valid(made), told([made]), made)
    for field in entry:
        made = {key: value for key, value in entry.items() if key != field}
        agree(VALID["schedule"].is_valid([made]), told([made]), made)


@pytest.mark.parametrize("name", ["change_lr", "advance_stage"])
@pytest.mark.parametrize("other", [{}, {"max_wait_iters": 1}, {"trigger_loss": 2}, {"when": {"waited": 3}}])
def test_each_field_of_an_entry_agrees_with_the_reader(name: str, other: dict[str, Any]) -> None:
    entry = {"name": name, "value": EXAMPLES[name]["value"]}
    schema, terms = part(name), part("with_trigger")
    for field in ("trigger_loss", "max_wait_iters", "when", "reevaluate", "guard", "desc", "completed", "repeat"):
        for value in values():
            made = {**entry, **other, field: copy.deepcopy(value)}
            agree(schema.is_valid(made) and terms.is_valid(made), told([made]), made)


def test_options_that_exclude_each_other() -> None:
    growing = {"name": "stack_layers", "max_wait_iters": 1}
    for made in (
        {**growing, "value": [0, 0], "order": "interleave"},
        {**growing, "value": 2, "order": "interleave"},
        {**growing, "value": [0, 0], "order": "append"},
        {"name": "widen_mlp", "value": 2, "split": "newborn", "noise": 0.1, "max_wait_iters": 1},
        {"name": "widen_mlp", "value": 2, "split": "newborn", "noise": 0, "max_wait_iters": 1},
        {"name": "set_mlp_width", "value": 64, "split": "newborn", "noise": 0.1, "max_wait_iters": 1},
        {"name": "set_mlp_width", "value": 64, "split": "even", "noise": 0.1, "max_wait_iters": 1},
        {"name": "widen_mlp", "value": 2, "split": "even", "noise": 0.1, "max_wait_iters": 1},
        {"name": "increase_hidden_dim", "value": 2, "noise": 0.1, "max_wait_iters": 1},
        {**TIMED, "repeat": 2, "completed": True},
        {**TIMED, "repeat": 2, "completed": False},
    ):
        assert VALID["schedule"].is_valid([made]) == (not told([made])), made


def test_groups_and_mappings_agree_with_the_reader() -> None:
    guard = {"max_loss_increase": 0.1, "within_steps": 5}
    documents: list[Any] = [
        None, [], {}, 3, [None], [[]], {"operations": None}, {"operations": []}, {"operations": TIMED},
        {"operations": [TIMED], "defaults": None}, {"operations": [TIMED], "default": {}},
        {"defaults": {"max_wait_iters": 1}}, {"defaults": {"max_wait_iters": 1}, "operations": [CHANGE]},
        {"defaults": {"max_wait_iters": None}, "operations": [CHANGE]}, {"defaults": {}, "operations": [CHANGE]},
        {"defaults": {"desc": "x"}, "operations": [TIMED]}, {"defaults": 0, "operations": [TIMED]},
        {"defaults": {"when": {"waited": 1}}, "operations": [CHANGE, {**CHANGE, "trigger_loss": 3}]},
        {"defaults": {"trigger_loss": -1}, "operations": [TIMED]},
        {"defaults": {"guard": guard}, "operations": [TIMED]},
        {"defaults": {"guard": guard, "max_wait_iters": 1}, "operations": [{"name": "advance_stage", "guard": None}]},
        {"defaults": {"max_wait_iters": 1}, "operations": [{"repeat": 2, "operations": [CHANGE]}]},
        {"operations": [CHANGE]}, {"operations": [TIMED]}, {"defaults": {"trigger_loss": None}, "operations": [CHANGE]},
        {"defaults": None, "operations": [CHANGE]}, [{"repeat": 2, "operations": [{"name": "x"}]}],
        [{"repeat": 2, "operations": [{**TIMED, "unknown": 1}]}], [{**CHANGE, "when": {"waited": 1, "unknown": 2}}],
        {"defaults": {"trigger_loss": 3}, "operations": [CHANGE]},
        [{"repeat": 2, "operations": [CHANGE]}], [{"repeat": 2, "operations": [TIMED]}], [{"operations": [TIMED]}],
        [{"repeat": 2, "operations": []}], [{"repeat": 2, "operations": TIMED}], [{"repeat": 2, "operations": None}],
        [{"repeat": 2, "operations": [{**TIMED, "repeat": 2}]}], [{"repeat": 2.0, "operations": [TIMED]}],
        [{"repeat": 2, "operations": [{**TIMED, "completed": True}]}],
        [{"repeat": 2, "desc": 3, "operations": [TIMED]}],
        [{"repeat": 2, "desc": None, "operations": [{**TIMED, "completed": False}]}], [{"repeat": 2}],
        [{"repeat": 2, "max_wait_iters": 3, "operations": [TIMED]}], [{"repeat": "end", "operations": [TIMED, TIMED]}],
        [{"repeat": 2, "operations": [{"repeat": 2, "operations": [TIMED]}]}], [{**TIMED, "operations": [TIMED]}],
    ]  # fmt: skip
    for document in documents[1:]:
        assert VALID["schedule"].is_valid(document) == (not told(document)), document
    assert VALID["schedule"].is_valid(None)  # of a file that says null


def test_stages_agree_with_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"

    def compared(plan: Any) -> None:
        path.write_text(json.dumps(plan))
        agree(VALID["plan"].is_valid(plan), refusals("plan", path), plan)

    for number, field in enumerate(StageFields.model_fields):
        for value in [*values()][number % 3 :: 3]:
            compared({"a": {**STAGE, field: copy.deepcopy(value)}})
    for number, field in enumerate(Part.model_fields):
        for value in [*values()][number % 5 :: 5]:
            compared({"a": {"steps": 1, "mix": [{"dataset": "demo", field: copy.deepcopy(value)}]}})
    for field, least in {"max_documents": 1, "block_size": 2, "steps": 1, "tokens": 1}.items():
        for value in (least, least - 1, float(least), least + 0.5, True):
            compared({"a": {"dataset": "demo", **({} if field in ("steps", "tokens") else {"steps": 1}), field: value}})
    for field in ("epochs", "learning_rate", "validation_split"):
        for value in (0.0, 0.5, 1, -1, True, "0.5"):
            compared({"a": {"dataset": "demo", **({} if field == "epochs" else {"steps": 1}), field: value}})
    for stage in ({}, {"dataset": "demo"}, {"steps": 3}, {**STAGE, "epochs": 2}, {**STAGE, "epochs": None}, 3, None):
        compared({"a": stage})
    plans: list[Any] = [{}, []]
    for plan in (*plans, {"a": {**STAGE, "schedule": {"operations": [TIMED]}}}, {"a": {**STAGE, "schedule": None}}):
        compared(plan)


@pytest.mark.parametrize("message", CANNOT_SAY)
def test_what_a_schema_cannot_say(message: str, tmp_path: Path) -> None:
    """Were one of these said by now, it would not have to be listed."""
    data = CANNOT_SAY[message]
    path = tmp_path / "file.json"
    path.write_text(json.dumps(data))
    assert VALID[kind_of(data)].is_valid(data)
    assert any(re.search(message, what) for what in refusals(kind_of(data), path))


def compare_mutated(folder: Path, first: int, count: int, longest: int = 20_000) -> dict[tuple[bool, bool], int]:
    """Compare on mutated files; how many were accepted by the schema, by the reader."""
    seen: dict[tuple[bool, bool], int] = {}
    for index in range(first, first + count):
        made = case(11, index)
        if made.kind == "config" or len(made.content) > longest:
            continue
        path = folder / f"mutated{made.suffix}"
        path.write_bytes(made.content)
        try:
            document = load_document(path)
        except DocumentError:
            continue
        if document.problems:  # such as a key that is there twice: of the text, not of the data
            continue
        accepts, problems = VALID[made.kind].is_valid(document.data), refusals(made.kind, path)
        agree(accepts, problems, document.data)
        seen[accepts, not problems] = seen.get((accepts, not problems), 0) + 1
    return seen


def test_mutated_files_agree_with_the_readers(tmp_path: Path) -> None:
    assert min(compare_mutated(tmp_path, 0, 120, 4000).get((good, good), 0) for good in (True, False)) > 10


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_mutated_files_agree_with_the_readers(tmp_path: Path) -> None:
    compare_mutated(tmp_path, 250, 10_000)
