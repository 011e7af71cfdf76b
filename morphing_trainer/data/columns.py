"""The columns of a table that are of use: the text under its own name, and title, prompt and truth if it has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import datasets

from morphing_trainer.data.documents import PROMPT, TEXT, TITLE, TRUTH, documents
from morphing_trainer.errors import DataError, suggest

Table = TypeVar("Table", datasets.Dataset, datasets.IterableDataset)


def useful(table: Table, kinds: Mapping[str, str], column: str, where: str) -> Table:
    """`table` with columns "text", "title", "prompt", "truth" alone, as far as it has them.

    Args:
        kinds: the table's columns and what they hold; "string" is text.
        column: what the text is called.

    Raises:
        DataError: if there is neither a column `column` of text, nor a prompt and a truth.
    """
    texts = {name for name, kind in kinds.items() if kind in ("string", "large_string")} - {column}
    asked = {PROMPT, TRUTH} <= texts
    kept: list[str] = [TITLE] * (TITLE in texts) + [PROMPT, TRUTH] * asked
    if column not in kinds and not asked:
        raise DataError(
            f"{where}: has no column {column!r}{suggest(column, kinds)} "
            f"(set text_column to one of its columns: {', '.join(kinds)})"
        )
    if column in kinds:
        if kinds[column] not in ("string", "large_string"):
            raise DataError(
                f"{where}: column {column!r} holds {kinds[column]}, not text. Set text_column to a column with text."
            )
        kept = [column, *kept]
    table = table.select_columns(kept)
    return table if column == TEXT or column not in kept else table.rename_column(column, TEXT)


def kinds_of(features: datasets.Features) -> dict[str, str]:
    """What each column holds, in a word."""
    return {name: getattr(feature, "dtype", type(feature).__name__) for name, feature in features.items()}


def kinds_of_row(row: Mapping[str, Any]) -> dict[str, str]:
    """What each column holds, judged by one row; nothing counts as text."""
    return {name: "string" if isinstance(value, str | None) else type(value).__name__ for name, value in row.items()}


def useful_texts(table: datasets.Dataset, column: str, where: str) -> datasets.Dataset:
    """`useful`, of a table that must hold some text.

    Raises:
        DataError: as `useful`, and if there are no rows, or all are blank.
    """
    if len(table) == 0:
        raise DataError(f"{where}: is empty. Give data with text.")
    found = useful(table, kinds_of(table.features), column, where)
    if not has_text(found.iter(batch_size=10)):
        name = f"column {column!r}" if TEXT in found.column_names else f"column {TRUTH!r}"
        raise DataError(f"{where}: {name} is empty in all {len(table)} rows. Give data with text.")
    return found


def has_text(batches: Iterable[Mapping[str, Any]]) -> bool:
    """Whether any document is not blank."""
    return any(not document.blank for batch in batches for document in documents(batch))
