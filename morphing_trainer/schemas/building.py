"""JSON Schemas (draft 2020-12) of schedules and training plans.

Keywords are those that draft 7 has, too, which many editors know best; only a list of unlike items needs a newer one.
"""

from __future__ import annotations

import json
from typing import Any

from morphing_trainer.operations import NAMES, OPERATIONS, Operation
from morphing_trainer.operations.stages import AdvanceStage
from morphing_trainer.plans.fields import Part, StageFields
from morphing_trainer.reporting.reference import name_of, summary_of, text_of
from morphing_trainer.reporting.reference_texts import EXAMPLES, STAGE_KEYS
from morphing_trainer.schemas.classes import Schema, class_schema, field_text
from morphing_trainer.schemas.conditions import CONDITION, condition, entry_fields, rules, with_trigger

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_FILE = r"\.([yY][aA]?[mM][lL]|[jJ][sS][oO][nN])$"
_DEFAULTS = ("trigger_loss", "max_wait_iters", "when", "reevaluate", "guard")


def schema_text(kind: str) -> str:
    """The schema of a `schedule` or a `plan`, as the file has it."""
    made = {"schedule": schedule_schema, "plan": plan_schema}[kind]()
    return json.dumps(made, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def schedule_schema() -> Schema:
    """A schedule: a list of operations, or a mapping with `operations` and `defaults`."""
    return {"$schema": DRAFT, "title": "Schedule of morphing_trainer", **_schedule(), "$defs": _parts()}


def plan_schema() -> Schema:
    """A training plan: stages by name."""
    own = {"schedule": _schedule(), "part": _stage_like(Part, "one source of a mix"), "stage": _stage()}
    return {
        "$schema": DRAFT,
        "title": "Training plan of morphing_trainer",
        "description": "Stages by name, in the order of training.",
        "type": "object",
        "minProperties": 1,
        "additionalProperties": _ref("stage"),
        "$defs": own | _parts(),
    }


def _schedule() -> Schema:
    listed: Schema = {"type": ["array", "null"], "items": _ref("item")}
    triggered: Schema = {"items": _ref("item_with_trigger")}
    has_trigger: Schema = {"defaults": {"type": "object", **with_trigger()}}
    mapping: Schema = {
        "type": "object",
        "properties": {
            "defaults": _ref("defaults"),
            "operations": {"description": "The operations, in order.", **listed},
        },
        "required": ["operations"],
        "additionalProperties": False,
        "if": {"required": ["defaults"], "properties": has_trigger},
        "else": {"properties": {"operations": triggered}},
    }
    return {
        "description": "Operations in order, each with its trigger; or a mapping with operations and defaults.",
        "anyOf": [{**listed, "allOf": [triggered]}, mapping],
    }


def _parts() -> dict[str, Schema]:
    """What a schedule is made of."""
    operations = [_ref(name) for name in OPERATIONS]
    fields = entry_fields()
    return {
        "item": {"allOf": [_ref("named")], "oneOf": [*operations, _ref("group")]},
        "named": {"type": "object", "properties": {"name": _names()}},
        "member": {
            "oneOf": operations,
            "allOf": [
                _ref("named"),
                {"not": {"required": ["repeat"]}, "properties": {"completed": {"const": False}}},
            ],
        },
        "group": _group(),
        "defaults": {
            "description": "What holds for every entry that says nothing else.",
            "type": ["object", "null"],
            "properties": {key: _ref(key) for key in _DEFAULTS},
            "additionalProperties": False,
        },
        **{name: _operation(operation) for name, operation in OPERATIONS.items()},
        **fields,
        "condition": condition(),
        "rules": rules(),
        "with_trigger": with_trigger(),
        "item_with_trigger": {
            "if": {"required": ["operations"]},
            "then": {"properties": {"operations": {"items": _ref("with_trigger")}}},
            "else": _ref("with_trigger"),
        },
    }


def _names() -> Schema:
    """Every name: an editor that looks at operations alone offers the names of those that fit what is there so far."""
    return {
        "oneOf": [
            {"const": name, "title": name, "description": f"{summary_of(operation)}."}
            for name, operation in NAMES.items()
        ]
    }


def _operation(operation: type[Operation]) -> Schema:
    name, made = name_of(operation), class_schema(operation)
    own: dict[str, Any] = {
        key: {"description": field_text(operation, key), **schema}
        for key, schema in made["properties"].items()
        if key != "name"
    }
    if (example := EXAMPLES.get(name, {"value": None})["value"]) is not None:
        own["value"]["examples"] = [example]
    shared: dict[str, Schema] = {key: _ref(key) for key in entry_fields()}
    if operation is AdvanceStage:  # losses of different stages cannot be compared
        shared["guard"] = {"description": "Not of a stage's end.", "type": "null"}
    names: Schema = {"enum": [name, *operation.aliases]} if operation.aliases else {"const": name}
    return {
        "title": name,
        "description": f"{summary_of(operation)}.",
        "type": "object",
        "properties": {"name": {"description": text_of(operation), **names}, **own, **shared},
        "required": ["name", *made.get("required", [])],
        "additionalProperties": False,
        "allOf": [_ref("rules"), *([{key: made[key] for key in ("if", "then")}] if "if" in made else [])],
    }


def _group() -> Schema:
    return {
        "title": "group",
        "description": "Operations that are repeated in turn, each with a trigger of its own.",
        "type": "object",
        "properties": {
            "repeat": _ref("repeat"),
            "operations": {"type": "array", "minItems": 1, "items": _ref("member")},
            "desc": _ref("desc"),
        },
        "required": ["repeat", "operations"],
        "additionalProperties": False,
    }


def _stage() -> Schema:
    stage = _stage_like(StageFields, "stage")
    stage["properties"]["mix"]["anyOf"][0]["items"] = _ref("part")
    file = {"type": "string", "description": "A file with a schedule.", "pattern": _FILE}
    stage["properties"]["schedule"] |= {"anyOf": [file, _ref("schedule")]}
    return stage


def _stage_like(kind: type[Part] | type[StageFields], title: str) -> Schema:
    made = class_schema(kind)
    for key, schema in made["properties"].items():
        made["properties"][key] = {"description": STAGE_KEYS[key], **schema}
    return {"title": title, "description": text_of(kind), **made}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


__all__ = ["CONDITION", "plan_schema", "schedule_schema", "schema_text"]
