"""Continuation: a text is cut at sentence boundaries into samples that follow each other.

Each sample is a *prompt*, which the model reads, and a *truth*, which it learns. The truths of a text, one after the
other, are its tokens and the end-of-text: each of them is learnt exactly once. Prompts are

    the first sample of a text:  its title, in a line of its own; else the end-of-text, which is what any text follows
    the others:                  its title, and the last sentence before the truth

A prompt gives way where there is no room: the truth's first sentence stays whole if it can, and no more than half of a
sample is prompt while there is text left to learn. What gives way is the beginning of a prompt, or the end of a title.
A sentence for which a whole sample is too short is cut between words, in parts of half a sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import datasets
import numpy as np
from numpy.typing import NDArray
from sentencex import get_sentence_boundaries
from transformers import PreTrainedTokenizerBase

from morphing_trainer.data.documents import Batch, Document, documents
from morphing_trainer.data.packing import cut_long, token_ids

Tokens = NDArray[np.int32]


class Cut(NamedTuple):
    """A sample of a text: its truth is tokens [start, stop) of the text, its prompt ends with `context` tokens."""

    start: int
    stop: int
    context: int


@dataclass(frozen=True)
class Cutter:
    """Documents -> samples in order, a row each: prompt and truth, the prompt's length, and whether it `starts` a text.

    Blank documents are left out.
    """

    tokenizer: PreTrainedTokenizerBase
    block_size: int
    language: str = "en"
    features = datasets.Features(
        {
            "input_ids": datasets.List(datasets.Value("int32")),
            "prompt": datasets.Value("int32"),
            "starts": datasets.Value("bool"),
        }
    )

    def __call__(self, batch: Batch) -> dict[str, list[Any]]:
        """The samples of a batch of documents."""
        rows: dict[str, list[Any]] = {"input_ids": [], "prompt": [], "starts": []}
        for document in documents(batch):
            if not document.blank:
                for index, (prompt, truth) in enumerate(self.samples(document)):
                    rows["input_ids"].append(np.concatenate([prompt, truth]))
                    rows["prompt"].append(len(prompt))
                    rows["starts"].append(document.begins and index == 0)
        return rows

    def samples(self, document: Document) -> Iterator[tuple[Tokens, Tokens]]:
        """Prompt and truth of each sample, (tokens,) int32 both."""
        tokenizer, size = self.tokenizer, self.block_size
        end = np.array([tokenizer.eos_token_id], np.int32)
        ids, ends = tokens_and_ends(tokenizer, document.text)
        bounds = sentence_bounds(document.text, ends, self.language)
        if not document.continues:
            ids = np.concatenate([ids, end])
            bounds[-1] += 1  # end-of-text belongs to the last sentence
        head, first = self._head(document), self._first(document)
        if not len(head) and not len(first):
            first = end
        for cut in cuts(bounds, size, len(head), len(first), starts_word(document.text, ends)):
            context = ids[cut.start - cut.context : cut.start] if cut.start else first[len(first) - cut.context :]
            yield np.concatenate([head, context]), ids[cut.start : cut.stop]

    def _head(self, document: Document) -> Tokens:
        """The title, which is part of every prompt, in a quarter of a sample at most."""
        if not document.title:
            return np.empty(0, np.int32)
        return token_ids(self.tokenizer, [document.heading])[0][: self.block_size // 4]

    def _first(self, document: Document) -> Tokens:
        """What the first sample reads after the title."""
        before = document.prompt
        if document.before:
            before = document.before[[0, *sentence_starts(document.before, self.language)][-1] :]
        return token_ids(self.tokenizer, [before])[0] if before else np.empty(0, np.int32)


def tokens_and_ends(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[Tokens, NDArray[np.int64]]:
    """The tokens of `text`, (tokens,) int32, the same that packing gives, and the character that each one ends at."""
    options: dict[str, Any] = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    ids, ends, base = [], [], 0
    for piece in cut_long(text):
        encoded = tokenizer(piece, return_offsets_mapping=True, **options)
        offsets = encoded["offset_mapping"]
        ids.append(np.asarray(encoded["input_ids"], np.int32))
        ends.append(np.fromiter((end for _, end in offsets), np.int64, len(offsets)) + base)
        base += len(piece)
    return np.concatenate(ids), np.concatenate(ends)


def sentence_starts(text: str, language: str) -> list[int]:
    """The characters that sentences begin at, ascending, but for the first one; space alone is no sentence."""
    # Not `segment`: in a text of more than 10,000 characters it drops some of the space between paragraphs.
    found = (boundary for boundary in get_sentence_boundaries(language, text) if not boundary["text"].isspace())
    return [int(boundary["start_index"]) for boundary in found][1:]


def sentence_bounds(text: str, ends: NDArray[np.int64], language: str) -> list[int]:
    """Where each sentence's tokens begin, and the number of all tokens: [0, ..., len(ends)], ascending.

    A token that reaches over a boundary belongs to the later sentence.
    """
    inner = np.searchsorted(ends, sentence_starts(text, language), side="right")  # the first that ends behind it
    return [0, *sorted({int(at) for at in inner} - {0, len(ends)}), len(ends)]


def starts_word(text: str, ends: NDArray[np.int64]) -> Any:
    """Whether token `index` begins a word, as a function of `index`: there is space around its first character."""

    def at(index: int) -> bool:
        before = int(ends[index - 1]) if index <= len(ends) else len(text)
        return text[before - 1].isspace() or text[before : before + 1].isspace()

    return at


def cuts(bounds: list[int], size: int, head: int, first: int, word: Any) -> Iterator[Cut]:
    """The samples of a text whose sentences are tokens [bounds[i], bounds[i + 1]).

    Args:
        bounds: [0, ..., tokens], ascending.
        size: tokens of a sample at most.
        head: tokens that every prompt begins with.
        first: tokens that stand between them and the text's first token.
        word: whether a word begins at a token.
    """
    least = 0 if head else 1  # a truth without any prompt would have a first token that nothing predicts
    bounds = list(_with_cut_sentences(bounds, size - head - least, size // 2, word))
    total = bounds[-1]
    index = 0
    while index < len(bounds) - 1:
        start, stop = bounds[index], bounds[index + 1]
        before = start - bounds[index - 1] if index else first
        fair = max(size // 2 - head, size - head - (total - start), least)
        context = min(before, size - head - (stop - start), fair)
        index += 1
        while index < len(bounds) - 1 and head + context + bounds[index + 1] - start <= size:
            index += 1
        yield Cut(start, bounds[index], context)


def _with_cut_sentences(bounds: list[int], longest: int, part: int, word: Any) -> Iterator[int]:
    """`bounds`, and more of them where a sentence is longer than `longest` tokens: parts of `part` tokens at most."""
    for start, stop in pairwise(bounds):
        yield start
        if stop - start > longest:
            while stop - start > part:
                start = next((at for at in range(start + part, start, -1) if word(at)), start + part)
                yield start
    yield bounds[-1]
