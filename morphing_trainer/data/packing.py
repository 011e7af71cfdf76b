"""Packing: documents joined by end-of-text and cut into blocks of one length."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from morphing_trainer.errors import DataError

Sample = dict[str, NDArray[np.int64]]

PIECE_CHARACTERS = 50_000
GROUP_CHARACTERS = 1_000_000
_LINE_END = re.compile(r"\S\n(?=\S)")
_WORD_END = re.compile(r"\S(?= \S)")


class Blocks(Dataset[Sample]):
    """`tokens`, (blocks, block_size) int32, as samples `{"input_ids", "labels"}` of (block_size,) int64 each.

    A contiguous array instead of a `datasets.Dataset`: it hands out a batch about ten times as fast. Labels equal the
    inputs (the model shifts them), and share their memory until they are collated.
    """

    def __init__(self, tokens: NDArray[np.int32]) -> None:
        assert tokens.ndim == 2
        self.tokens = tokens

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return int(self.tokens.shape[1])

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Sample:
        row = self.tokens[index].astype(np.int64)
        return {"input_ids": row, "labels": row}

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        rows = self.tokens[np.asarray(indices)].astype(np.int64)  # one gather for the batch
        return [{"input_ids": row, "labels": row} for row in rows]


def collate(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """The samples of `Blocks` as one batch: `input_ids` and `labels`, (samples, block_size) int64, apart in memory."""
    input_ids = torch.from_numpy(np.stack([sample["input_ids"] for sample in samples]))
    return {"input_ids": input_ids, "labels": input_ids.clone()}


def tokenize(
    texts: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, text_column: str = "text"
) -> datasets.Dataset:
    """The tokens of `texts` in order, as rows of int32 `input_ids`; each document is closed by end-of-text.

    Blank documents are left out, and long ones take several rows. Cached by `datasets` next to data that lies on
    disk, so a second run finds it done.
    """
    return texts.map(
        _tokenize,
        batched=True,
        input_columns=[text_column],
        remove_columns=texts.column_names,
        features=datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))}),
        fn_kwargs={"tokenizer": tokenizer},
        desc="Tokenising",
    )


def _tokenize(documents: list[str | None], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[NDArray[np.int32]]]:
    end = np.array([tokenizer.eos_token_id], np.int32)
    rows = []
    for group in _groups(documents):
        # verbose=False: documents may well be longer than the model's context, they are cut into blocks afterwards
        encoded = tokenizer(
            [piece for piece, _ in group], add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        for (_, closes), ids in zip(group, encoded, strict=True):
            row = np.asarray(ids, np.int32)
            rows.append(np.concatenate([row, end]) if closes else row)
    return {"input_ids": rows}


def _groups(documents: list[str | None]) -> Iterator[list[tuple[str, bool]]]:
    """Pieces of documents, each with whether it closes its document, in groups of about `GROUP_CHARACTERS`.

    A tokenizer takes some 300 bytes of memory for each character that it is given at once.
    """
    group: list[tuple[str, bool]] = []
    size = 0
    for document in documents:
        if document and not document.isspace():
            *pieces, last = cut_long(document)
            for piece, closes in [*((piece, False) for piece in pieces), (last, True)]:
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
        at = cuts[-1] + size
        found = _LINE_END.search(document, at, at + size) or _WORD_END.search(document, at)
        if found is None:
            break
        cuts.append(found.end())
    return [document[start:end] for start, end in zip(cuts, [*cuts[1:], len(document)], strict=True)]


def pack(
    texts: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    text_column: str = "text",
    n_positions: int | None = None,
    where: str = "training data",
) -> Blocks:
    """All of `texts` as blocks of `block_size` tokens; what is left at the very end, less than a block, is dropped.

    Args:
        n_positions: the longest sequence the model takes, if it has a limit.
        where: how error messages call this data.

    Raises:
        DataError: if the text is shorter than one block, `block_size` does not fit the model, or the tokenizer has no
            end-of-text token.
    """
    if block_size < 2:
        raise DataError(f"block_size: must be at least 2 (a token, and the one to predict from it), is {block_size}.")
    if n_positions is not None and block_size > n_positions:
        raise DataError(
            f"block_size: is {block_size}, but the model takes at most {n_positions} tokens (n_positions). "
            f"Set block_size to {n_positions} or less."
        )
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"tokenizer {tokenizer.name_or_path!r}: has no end-of-text token (eos_token) to put between documents. "
            "Set one with `tokenizer.eos_token = ...` and save it, or use another tokenizer."
        )
    tokens = _joined(tokenize(texts, tokenizer, text_column))
    blocks = len(tokens) // block_size
    if blocks == 0:
        raise DataError(
            f"{where}: has {len(tokens)} tokens, less than one block of {block_size}. "
            "Give more text, or set a smaller block_size."
        )
    return Blocks(tokens[: blocks * block_size].reshape(blocks, block_size))


def _joined(tokenized: datasets.Dataset) -> NDArray[np.int32]:
    """All tokens in one array, (tokens,) int32."""
    batches = tokenized.with_format("arrow").iter(batch_size=10_000)
    parts = [batch["input_ids"].combine_chunks().flatten().to_numpy() for batch in batches]
    return np.concatenate([np.empty(0, np.int32), *parts])
