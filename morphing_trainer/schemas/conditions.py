"""JSON Schema of what stands under `when:`, and of the fields that every entry of a schedule may have."""

from __future__ import annotations

from typing import Any

from morphing_trainer.reporting.reference import conditions, plain, text_of
from morphing_trainer.reporting.reference_texts import ENTRY_KEYS
from morphing_trainer.schedule_entry import Terms
from morphing_trainer.schemas.classes import Schema, class_schema
from morphing_trainer.triggers import COMPOSITE, VALUED, InStage, Plateau, Trigger

CONDITION: Schema = {"$ref": "#/$defs/condition"}
_GIVEN: Schema = {"not": {"type": "null"}}


def condition() -> Schema:
    """Exactly one condition."""
    listed: Schema = {"type": "array", "minItems": 1, "items": CONDITION}
    named: Schema = {"type": "string", "minLength": 1}
    staged: Schema = {
        "type": "object",
        "properties": {"name": named, "then": CONDITION},
        "required": ["name"],
        "additionalProperties": False,
    }
    values: dict[str, Schema] = {
        **{kind: class_schema(trigger)["properties"]["value"] for kind, trigger in VALUED.items()},
        Plateau.kind: class_schema(Plateau),
        InStage.kind: {"anyOf": [{**named, "title": "a stage"}, staged]},
        **dict.fromkeys(COMPOSITE, listed),
    }
    texts: dict[str, type[Trigger]] = {**VALUED, Plateau.kind: Plateau, InStage.kind: InStage, **COMPOSITE}
    return {
        "title": "condition",
        "description": "One condition; several are joined by all: [...] or any: [...].",
        "type": "object",
        "properties": {
            facts.name: {
                "description": f"Holds when {text_of(texts[facts.name])[0].lower()}{text_of(texts[facts.name])[1:]}",
                **values[facts.name],
                "examples": [facts.example[facts.name]],
            }
            for facts in conditions()
        },
        "additionalProperties": False,
        # Exactly one; editors that are asked for the next key take a maxProperties of 1 to mean that there is none.
        "oneOf": [{"required": [facts.name]} for facts in conditions()],
    }


def entry_fields() -> dict[str, Schema]:
    """Field of an entry -> its schema; `when` and `repeat`, which no class has, among them."""
    says = {key: _sentence(text) for key, _, _, text in ENTRY_KEYS}
    made: dict[str, Any] = class_schema(Terms)["properties"]
    made["when"] = CONDITION
    made["repeat"] = {"anyOf": [{"type": "integer", "minimum": 1}, {"const": "end"}]}
    return {key: {"description": text, **made[key]} for key, text in says.items()}


def _sentence(text: str) -> str:
    text = plain(text).split("; see ")[0].split(", see ")[0]
    return f"{text[0].upper()}{text[1:]}."


def with_trigger() -> Schema:
    """Demands a trigger."""
    plain_ones = [{"required": [key], "properties": {key: _GIVEN}} for key in ("trigger_loss", "max_wait_iters")]
    return {"anyOf": [{"required": ["when"]}, *plain_ones]}


def rules() -> Schema:
    """What fields of an entry ask of each other."""
    nothing: Schema = {"type": "null"}
    alone: Schema = {"properties": {"trigger_loss": nothing, "max_wait_iters": nothing}}
    return {
        "allOf": [
            {"if": {"required": ["when"]}, "then": alone},
            {"if": {"required": ["repeat"]}, "then": {"properties": {"completed": {"const": False}}}},
        ]
    }
