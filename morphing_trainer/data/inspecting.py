"""What samples look like: numbers over all of them, and single ones as text with the loss mask."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from morphing_trainer.data.loading import IGNORED_LABEL
from morphing_trainer.data.samples import Blocks, Counts
from morphing_trainer.data.writing import Samples

BINS = 10


@dataclass(frozen=True)
class Summary:
    """Numbers over all samples of a split.

    Attributes:
        samples: how many.
        texts: how many texts they are of, or None where texts are joined.
        tokens: that the model reads in an epoch.
        learnt: of these, those that the loss counts.
        shortest: tokens of the shortest sample.
        mean: tokens of a sample, on average.
        longest: tokens of the longest sample.
        histogram: samples whose length is in each of `BINS` equal parts of (0, block_size].
        fingerprint: of the samples.
        counts: what became of the documents.
    """

    samples: int
    texts: int | None
    tokens: int
    learnt: int
    shortest: int
    mean: float
    longest: int
    histogram: tuple[int, ...]
    fingerprint: str
    counts: Counts | None


def lengths_of(samples: Samples) -> NDArray[np.int64]:
    """Tokens of each sample, (samples,) int64."""
    if isinstance(samples, Blocks):
        return np.full(len(samples), samples.block_size)
    return np.diff(samples.offsets)


def summary(samples: Samples) -> Summary:
    """Numbers over all of `samples`."""
    lengths = lengths_of(samples)
    tokens = int(lengths.sum())
    unlearnt = 0 if isinstance(samples, Blocks) else int(np.sum(samples.prompts, dtype=np.int64))
    counts, _ = np.histogram(lengths, BINS, (0, samples.block_size))
    return Summary(
        samples=len(samples),
        texts=None if samples.text_starts is None else len(samples.text_starts),
        tokens=tokens,
        learnt=tokens - unlearnt,
        shortest=int(lengths.min()),
        mean=float(lengths.mean()),
        longest=int(lengths.max()),
        histogram=tuple(counts.tolist()),
        fingerprint=samples.fingerprint,
        counts=samples.counts,
    )


@dataclass(frozen=True)
class Part:
    """Tokens in a row that the loss counts ("truth"), or does not ("prompt"), as text."""

    kind: Literal["prompt", "truth"]
    tokens: int
    text: str


@dataclass(frozen=True)
class Shown:
    """A sample as text.

    Attributes:
        index: of the sample.
        text: the number of the text it is of, or None where texts are joined.
        starts: whether that text begins here.
        parts: one after the other.
    """

    index: int
    text: int | None
    starts: bool
    parts: tuple[Part, ...]


def shown(samples: Samples, index: int, tokenizer: PreTrainedTokenizerBase) -> Shown:
    """Sample `index` as text, divided as its labels say."""
    sample = samples[index]
    learnt = sample["labels"] != IGNORED_LABEL
    bounds = [0, *(np.flatnonzero(np.diff(learnt)) + 1).tolist(), len(learnt)]
    parts = tuple(
        Part("truth" if learnt[start] else "prompt", stop - start, _text(tokenizer, sample["input_ids"][start:stop]))
        for start, stop in pairwise(bounds)
    )
    if samples.text_starts is None:
        return Shown(index, None, False, parts)
    text = int(np.searchsorted(samples.text_starts, index, side="right")) - 1
    return Shown(index, text, bool(samples.text_starts[text] == index), parts)


def _text(tokenizer: PreTrainedTokenizerBase, ids: NDArray[np.int64]) -> str:
    text: Any = tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)
    return str(text)
