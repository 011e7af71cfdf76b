"""The JSON Schemas are fresh, sound, complete, and accept what we give as examples."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from morphing_trainer.documents import load_document
from morphing_trainer.operations import NAMES, OPERATIONS
from morphing_trainer.plans.fields import Part, StageFields
from morphing_trainer.reporting.reference_texts import CONDITION_EXAMPLES
from morphing_trainer.schemas import FILES
from morphing_trainer.schemas.building import schema_text
from morphing_trainer.triggers import KINDS
from tests.reliability.mutations import sources
from tests.schemas.common import (
    ROOT,
    SCHEMAS,
    VALID,
)


@pytest.mark.parametrize("kind", FILES)
def test_the_schemas_are_fresh_and_sound(kind: str) -> None:
    text = FILES[kind].read_text(encoding="utf-8")
    assert text == schema_text(kind), f"schemas/{kind}.json is stale; run: python docs/generate.py"
    Draft202012Validator.check_schema(json.loads(text))


@pytest.mark.parametrize("kind", ["schedule", "plan"])
def test_our_files_are_accepted_and_name_their_schema(kind: Any) -> None:
    for path in sources(kind):
        assert not [error.message for error in VALID[kind].iter_errors(load_document(path).data)], path
        if path.suffix == ".yaml":
            first = path.read_text(encoding="utf-8").splitlines()[0]
            assert first.startswith("# yaml-language-server: $schema=")
            assert (path.parent / first.partition("=")[2]).resolve() == FILES[kind]


@pytest.mark.parametrize(("page", "kind"), [("operations.md", "schedule"), ("plans.md", "plan")])
def test_examples_of_the_documentation_are_accepted(page: str, kind: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) >= (len(OPERATIONS) if kind == "schedule" else 1)
    for block in blocks:
        path = tmp_path / "example.yaml"
        path.write_text(block)
        assert not [error.message for error in VALID[kind].iter_errors(load_document(path).data)], block


def test_everything_there_is_stands_in_the_schema() -> None:
    parts = SCHEMAS["schedule"]["$defs"]
    assert {entry["const"] for entry in parts["named"]["properties"]["name"]["oneOf"]} == set(NAMES)
    assert set(parts["condition"]["properties"]) == set(KINDS) == set(CONDITION_EXAMPLES)
    for name, operation in OPERATIONS.items():
        properties = parts[name]["properties"]
        assert set(operation.model_fields) <= set(properties)
        assert {"trigger_loss", "max_wait_iters", "when", "guard", "repeat", "desc", "completed"} < set(properties)
        text = " ".join((operation.__doc__ or "").split())
        assert " ".join(properties["name"]["description"].split()) == text
        assert all("description" in (parts[key] if "$ref" in entry else entry) for key, entry in properties.items())
    stage = SCHEMAS["plan"]["$defs"]["stage"]["properties"]
    assert set(stage) == set(StageFields.model_fields)
    assert set(SCHEMAS["plan"]["$defs"]["part"]["properties"]) == set(Part.model_fields)
    assert all(len(entry["description"]) > 5 for entry in stage.values())


def test_the_files_are_part_of_the_package() -> None:
    assert "schemas/*.json" in (ROOT / "setup.cfg").read_text(encoding="utf-8")
