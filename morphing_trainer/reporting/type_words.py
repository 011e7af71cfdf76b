"""Types of fields in words, for whoever writes a schedule."""

from __future__ import annotations

import types
import typing
from typing import Any

from morphing_trainer.operations.base import Count, Factor, GrowthFactor, Nothing, Steps
from morphing_trainer.operations.components import Components
from morphing_trainer.operations.depth import LayerIndex
from morphing_trainer.operations.lora import ComponentRank, Rank
from morphing_trainer.operations.measured import BatchTarget

WORDS: tuple[tuple[Any, str], ...] = (
    (Factor, "number above 0"),
    (GrowthFactor, "number above 1"),
    (list[LayerIndex], "list of layers"),
    (Count, "whole number from 1"),
    (Steps, "whole number from 0"),
    (Components, "[component](#components), or a list"),
    (Rank, "whole number from 0"),
    (ComponentRank, "`[component, rank]`"),
    (BatchTarget, "`null`, or `{target_vram_percent: 82, max_batch_size: 1024}`"),
    (Nothing, "`null`"),
    (type(None), "`null`"),
    (int, "whole number"),
    (float, "number"),
    (str, "text"),
    (bool, "`true` or `false`"),
    (Any, "anything"),
)
"""Types that are known by a word."""


def words(annotation: Any) -> str:
    """A type in words.

    Raises:
        TypeError: if there are none for it.
    """
    known = next((said for entry, said in WORDS if annotation == entry), None)
    if known is not None:
        return known
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _bounded(words(arguments[0]), arguments[1:])
    if origin is typing.Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(words(argument) for argument in arguments)
    if origin is list:
        return f"list of {words(arguments[0])}"
    raise TypeError(f"reporting/type_words.py has no words for {annotation!r}; add them to WORDS")


def _bounded(said: str, metadata: tuple[Any, ...]) -> str:
    """`said` with the limits that pydantic's `Field` sets."""
    bounds = {"ge": " from {}", "gt": " above {}", "le": ", up to {}", "lt": ", below {}", "min_length": ", {} or more"}
    for constraint in (part for info in metadata for part in getattr(info, "metadata", [])):
        said += "".join(
            text.format(getattr(constraint, key)) for key, text in bounds.items() if hasattr(constraint, key)
        )
    return said
