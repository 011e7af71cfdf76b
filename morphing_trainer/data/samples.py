"""Samples as memory-mapped arrays, and how they become batches.

Flat arrays instead of a `datasets.Dataset`: they hand out a batch about ten times as fast, take no memory of their own,
and are shared by the workers of a loader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from morphing_trainer.data.loading import IGNORED_LABEL

Sample = dict[str, NDArray[np.int64]]
PAD = 0
"""Stands where a shorter sample has ended; masked, so that any token would do."""


@dataclass(frozen=True)
class Counts:
    """What became of the documents.

    Attributes:
        documents: all of them.
        blank: those without text; they give no samples.
        short: those that have text, but less of it than fills a sample.
        tokens: that samples are made of, end-of-text included.
    """

    documents: int
    blank: int
    short: int
    tokens: int

    def __str__(self) -> str:
        return (
            f"{self.documents:,} documents ({self.blank:,} blank and left out, {self.short:,} shorter than a sample), "
            f"{self.tokens:,} tokens"
        )


class _Mapped(Dataset[Sample]):
    """Arrays that are read from a file where they lie in one: sent to a worker as its name, not as its content."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: _file_of(value) for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: _opened(value) for name, value in state.items()})


class Blocks(_Mapped):
    """`tokens`, (blocks, block_size) int32 or uint16, as samples `{"input_ids", "labels"}` of (block_size,) int64 each.

    Labels equal the inputs (the model shifts them), and share their memory until they are collated.

    Attributes:
        fingerprint: of the samples themselves, wherever they came from; "" for an array from elsewhere.
        counts: what became of the documents, if that is known.
        text_starts: None; blocks do not follow each other in any way that matters.
    """

    def __init__(self, tokens: NDArray[Any], fingerprint: str = "", counts: Counts | None = None) -> None:
        assert tokens.ndim == 2
        self.tokens = tokens
        self.counts = counts
        self.fingerprint = fingerprint
        self.text_starts = None

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return int(self.tokens.shape[1])

    @property
    def tokens_per_sample(self) -> float:
        """Tokens that the model reads in a sample, on average."""
        return float(self.block_size)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Sample:
        row = self.tokens[index].astype(np.int64)
        return {"input_ids": row, "labels": row}

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        rows = self.tokens[np.asarray(indices)].astype(np.int64)  # one gather for the batch
        return [{"input_ids": row, "labels": row} for row in rows]


class Continuations(_Mapped):
    """Pieces of texts, in order: a prompt that is read, a truth that is learnt, together `block_size` tokens at most.

    Args:
        tokens: (tokens,) int32 or uint16, all samples one after the other, each with its prompt.
        offsets: (samples + 1,) int64, where each sample begins in `tokens`, and where the last one ends.
        prompts: (samples,) int32, how many tokens of each sample are its prompt.
        text_starts: (texts,) int64 ascending, the first sample of every text; the first is 0.
        block_size: tokens of the longest sample that there may be.
        fingerprint: of the samples themselves, wherever they came from.
        counts: what became of the documents, if that is known.
    """

    def __init__(
        self,
        tokens: NDArray[Any],
        offsets: NDArray[np.int64],
        prompts: NDArray[np.int32],
        text_starts: NDArray[np.int64],
        block_size: int,
        fingerprint: str = "",
        counts: Counts | None = None,
    ) -> None:
        assert len(offsets) == len(prompts) + 1
        self.tokens = tokens
        self.offsets = offsets
        self.prompts = prompts
        self.text_starts = text_starts
        self.block_size = block_size
        self.fingerprint = fingerprint
        self.counts = counts

    @property
    def tokens_per_sample(self) -> float:
        """Tokens that the model reads in a sample, on average, prompts included."""
        return len(self.tokens) / len(self)

    def tokens_of(self, indices: NDArray[np.int64]) -> int:
        """Tokens in these samples, without those that only fill up a batch."""
        return int((self.offsets[indices + 1] - self.offsets[indices]).sum())

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        input_ids = self.tokens[self.offsets[index] : self.offsets[index + 1]].astype(np.int64)
        labels = input_ids.copy()
        labels[: self.prompts[index]] = IGNORED_LABEL
        return {"input_ids": input_ids, "labels": labels}

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        return [self[index] for index in indices]


def collate(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """Samples of `Blocks` or `Continuations` as one batch: `input_ids` and `labels`, (samples, longest) int64.

    Shorter samples are filled up on the right, without a label; then there is an `attention_mask` of the same shape.
    """
    lengths = [len(sample["input_ids"]) for sample in samples]
    longest = max(lengths)
    if min(lengths) == longest:
        input_ids = torch.from_numpy(np.stack([sample["input_ids"] for sample in samples]))
        if all(sample["labels"] is sample["input_ids"] for sample in samples):
            return {"input_ids": input_ids, "labels": input_ids.clone()}
        return {"input_ids": input_ids, "labels": torch.from_numpy(np.stack([sample["labels"] for sample in samples]))}
    ids = np.full((len(samples), longest), PAD, np.int64)
    labels = np.full((len(samples), longest), IGNORED_LABEL, np.int64)
    mask = np.zeros((len(samples), longest), np.int64)
    for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        ids[row, :length] = sample["input_ids"]
        labels[row, :length] = sample["labels"]
        mask[row, :length] = 1
    arrays = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


class _File(tuple[Path, str, tuple[int, ...]]):
    """Path, type and shape of an array that lies in a file from its first byte on."""


def _file_of(value: Any) -> Any:
    if not (isinstance(value, np.memmap) and value.filename and value.offset == 0 and value.flags.c_contiguous):
        return value
    base: Any = value
    while isinstance(base, np.ndarray):
        base = base.base
    if not isinstance(base, mmap) or _address(np.frombuffer(base, np.uint8)) != _address(value):
        return value  # a part of the file from elsewhere than its beginning
    return _File((Path(value.filename), value.dtype.str, value.shape))


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


def _opened(value: Any) -> Any:
    return np.memmap(value[0], value[1], "r", shape=value[2]) if isinstance(value, _File) else value
