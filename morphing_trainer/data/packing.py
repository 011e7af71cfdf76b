"""Packing: documents joined by end-of-text and cut into blocks of one length."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from morphing_trainer.data.documents import Batch, Document, documents
from morphing_trainer.data.samples import Blocks, Sample

PIECE_CHARACTERS = 50_000
GROUP_CHARACTERS = 250_000
_LINE_END = re.compile(r"\S\n(?=\S)")
_WORD_END = re.compile(r"\S(?= \S)")


@dataclass(frozen=True)
class Packer:
    """Documents -> rows of tokens in order; each document is closed by end-of-text. Blank documents are left out.

    A long document takes several rows, of which the last one `closes` it.
    """

    tokenizer: PreTrainedTokenizerBase
    features = datasets.Features(
        {"input_ids": datasets.List(datasets.Value("int32")), "closes": datasets.Value("bool")}
    )

    def __call__(self, batch: Batch) -> dict[str, list[Any]]:
        """The rows of a batch of documents."""
        end = np.array([self.tokenizer.eos_token_id], np.int32)
        rows: dict[str, list[Any]] = {"input_ids": [], "closes": []}
        for group in _groups(documents(batch)):
            pieces = [piece for piece, _ in group]
            for (_, closes), ids in zip(group, token_ids(self.tokenizer, pieces), strict=True):
                rows["input_ids"].append(np.concatenate([ids, end]) if closes else ids)
                rows["closes"].append(closes)
        return rows


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[NDArray[np.int32]]:
    """The tokens of each text, (tokens,) int32, and nothing added to them."""
    # verbose=False: texts may well be longer than the model's context, they are cut afterwards
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [np.asarray(ids, np.int32) for ids in encoded]


def _groups(rows: Iterator[Document]) -> Iterator[list[tuple[str, bool]]]:
    """Pieces of documents, each with whether it closes its document, in groups of about `GROUP_CHARACTERS`.

    A tokenizer takes some 300 bytes of memory for each character that it is given at once.
    """
    group: list[tuple[str, bool]] = []
    size = 0
    for document in rows:
        if not document.blank:
            *pieces, last = cut_long(document.whole)
            for piece, closes in [*((piece, False) for piece in pieces), (last, not document.continues)]:
                group.append((piece, closes))
                size += len(piece)
                if size >= GROUP_CHARACTERS:
                    yield group
                    group, size = [], 0
    if group:
        yield group


def cut_long(document: str, size: int = PIECE_CHARACTERS) -> list[str]:
    """`document` in pieces of `size` characters or somewhat more, cut where a byte-level BPE never has a token across.

    That is after a single newline, or, where there is none for long, before a single space.
    """
    cuts = [0]
    while len(document) - cuts[-1] > 2 * size:
        found = place_to_cut(document, cuts[-1] + size, size)
        if found is None:
            break
        cuts.append(found)
    return [document[start:end] for start, end in zip(cuts, [*cuts[1:], len(document)], strict=True)]


def place_to_cut(text: str, at: int, size: int) -> int | None:
    """The first such place from character `at` on: a line's end within `size` characters, else any word's end."""
    found = _LINE_END.search(text, at, at + size) or _WORD_END.search(text, at)
    return None if found is None else found.end()


__all__ = ["Blocks", "Packer", "Sample", "cut_long", "place_to_cut", "token_ids"]
