"""JSON Schema of one class: what pydantic makes of it, told in the words of the reference."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from morphing_trainer.reporting.reference import hints, plain
from morphing_trainer.reporting.type_words import words

Schema = dict[str, Any]

_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
"""As pydantic writes bounds that stand behind a validator of our own."""


class _Generator(GenerateJsonSchema):
    """Without titles such as "Max Wait Iters", which say nothing."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def class_schema(kind: type[BaseModel]) -> Schema:
    """The schema of a class, with no `$defs`: what they hold stands where it is used.

    A title and a text are left to the caller.
    """
    made = kind.model_json_schema(schema_generator=_Generator)
    defined = made.pop("$defs", {})
    schema: Schema = _tidied(made, defined)
    return {key: value for key, value in schema.items() if key not in ("title", "description")}


def _tidied(schema: Any, defined: Schema) -> Any:
    if isinstance(schema, list):
        return [_tidied(item, defined) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        found = {**defined[schema["$ref"].rpartition("/")[2]], **schema}
        schema = {key: value for key, value in found.items() if key not in ("$ref", "title", "description")}
    # The key of a property may be "ge", too.
    return {
        _BOUNDS.get(key, key) if not isinstance(value, dict) else key: _tidied(value, defined)
        for key, value in schema.items()
    }


def field_text(kind: type[BaseModel], field: str, says: str = "") -> str:
    """What an editor shows of a field: what it says, its type, its default."""
    info = kind.model_fields[field]
    default = "" if info.is_required() or info.default is None else f" Default: {info.default}".lower()
    return f"{says or 'Type'}: {plain(words(hints(kind)[field]))}.{default.replace(' default', ' Default')}"
