"""A validation set where there is none: some of the documents, or the last part of each if they are too few."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NoReturn

import datasets
import numpy as np
from numpy.typing import NDArray

from morphing_trainer.data.columns import has_text
from morphing_trainer.data.documents import BEFORE, CONTINUES, TEXT, TRUTH
from morphing_trainer.errors import DataError

Split = tuple[datasets.Dataset, datasets.Dataset]


def document_rows(texts: datasets.Dataset) -> NDArray[np.int64]:
    """The row that each document begins at, and the number of rows: (documents + 1,) int64."""
    if BEFORE not in texts.column_names:
        return np.arange(len(texts) + 1)
    starts = [row for row, before in enumerate(texts[BEFORE]) if before is None]
    return np.array([*starts, len(texts)])


def first_documents(texts: datasets.Dataset, count: int | None) -> datasets.Dataset:
    """The first `count` documents, or all for None."""
    if count is None:
        return texts
    rows = document_rows(texts)
    return texts if count >= len(rows) - 1 else texts.select(range(int(rows[count])))


def hold_out(texts: datasets.Dataset, fraction: float, seed: int, where: str) -> Split:
    """Split off `fraction` of the documents, picked by `seed`, or the last part of each if they are too few for that.

    Raises:
        DataError: if there is too little text to split.
    """
    rows = document_rows(texts)
    documents = len(rows) - 1
    count = int(documents * fraction)
    if count < 1 and TRUTH in texts.column_names:  # a truth is not to be cut
        count = 1 if documents > 1 else _too_little(where)
    if count >= 1:
        held = np.random.default_rng(seed).choice(documents, size=count, replace=False)
        return divide(texts, np.repeat(np.isin(np.arange(documents), held), np.diff(rows)))
    parts = [_cut_document(texts.select(range(start, stop)), fraction) for start, stop in pairwise(rows.tolist())]
    train, validation = (datasets.concatenate_datasets([part[side] for part in parts]) for side in (0, 1))
    if not (has_text(train.iter(10)) and has_text(validation.iter(10))):
        _too_little(where)
    return train, validation


def _too_little(where: str) -> NoReturn:
    raise DataError(f"{where}: has too little text to hold out a part of it. Give more, or a validation_file.")


def divide(texts: datasets.Dataset, held: NDArray[np.bool_]) -> Split:
    """Split by a mask, (rows,) bool, keeping the order."""
    return texts.select(np.flatnonzero(~held)), texts.select(np.flatnonzero(held))


def _cut_document(rows: datasets.Dataset, fraction: float) -> Split:
    """A document in two, the second about `fraction` of it; its rows are read one by one."""
    if len(rows) == 1:
        row = rows[0]
        parts = cut(row[TEXT] or "", fraction)
        head, tail = (datasets.Dataset.from_list([row | {TEXT: part}], rows.features) for part in parts)
        return head, tail
    ends = np.cumsum([len(text) for text in rows[TEXT]])
    place = int(ends[-1] * (1 - fraction))
    index = int(np.searchsorted(ends, place, side="right"))
    row = rows[index]
    begin, behind = cut_at(row[TEXT], max(1, place - int(ends[index] - len(row[TEXT]))))
    middle: list[dict[str, Any]] = [row | {TEXT: begin, CONTINUES: False}, row | {TEXT: behind, BEFORE: None}]
    head, tail = (datasets.Dataset.from_list([part], rows.features) for part in middle)
    before = [rows.select(range(index))] if index else []
    after = [rows.select(range(index + 1, len(rows)))] if index + 1 < len(rows) else []
    return datasets.concatenate_datasets([*before, head]), datasets.concatenate_datasets([tail, *after])


def cut(text: str, fraction: float) -> tuple[str, str]:
    """`text` in two, the second about `fraction` of it: at a newline, else a space, else anywhere."""
    return cut_at(text, int(len(text) * (1 - fraction)))


def cut_at(text: str, end: int) -> tuple[str, str]:
    """`text` in two, the first of `end` characters or somewhat less."""
    for separator in ("\n", " "):
        at = text.rfind(separator, 0, end) + 1
        if at > end // 2:
            return text[:at], text[at:]
    return text[:end], text[end:]
