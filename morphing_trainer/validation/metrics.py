"""What an evaluation says beside the loss, from a few numbers per batch: no logits are kept.

token accuracy  = predicted tokens that are the true one / true tokens, each predicted from the true tokens before it
word accuracy   = sum over samples of max(0, w - d) / sum over samples of w
perplexity      = exp(loss)

where w is the number of words of a sample's truth, and d the Levenshtein distance, in whole words, between them and the
words of its prediction (the most likely token at each place of the truth, decoded together). Words are what white space
or end-of-text separates. It is between 0 and 1, and 1 only where all words are right. Decoding takes time, so words are
counted in the first `WORD_SAMPLES` samples of an evaluation only.

Only labels that are not -100 count, for all of them: prompts and padding do not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from morphing_trainer.data.loading import IGNORED_LABEL

WORD_SAMPLES = 64
"""Samples of an evaluation in which words are counted, from the first one on."""

_COLUMNS = ("loss", "weight", "fewest", "most", "rows", "kept", "right", "tokens", "right_words", "words")


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that is too large for a number."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def right_words(truth: Sequence[str], prediction: Sequence[str]) -> int:
    """Words of `truth` less the insertions, deletions and replacements that make it of `prediction`; not below 0."""
    return max(0, len(truth) - Levenshtein.distance(truth, prediction))


def words_of(texts: Sequence[str], separators: Collection[str] = ()) -> list[list[str]]:
    """The words of each text; `separators` (special tokens) stand for white space."""
    found = []
    for text in texts:
        for separator in separators:
            text = text.replace(separator, " ")
        found.append(text.split())
    return found


def count_words(labels: Tensor, predictions: Tensor, tokenizer: Any) -> tuple[int, int]:
    """(words right, words of the truth) in some samples.

    Args:
        labels: (samples, places), `IGNORED_LABEL` where nothing counts.
        predictions: (samples, places), the most likely token at each place.
        tokenizer: decodes them.
    """
    true, predicted = [], []
    for row, guesses in zip(labels.cpu(), predictions.cpu(), strict=True):
        counted = row != IGNORED_LABEL
        true.append(row[counted].tolist())
        predicted.append(guesses[counted].tolist())
    texts = tokenizer.batch_decode([*true, *predicted], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    words = words_of(texts, tokenizer.all_special_tokens)
    pairs = list(zip(words[: len(true)], words[len(true) :], strict=True))
    return sum(right_words(*pair) for pair in pairs), sum(len(truth) for truth, _ in pairs)


class Tally:
    """What one evaluation adds up on one process: a row of ten numbers for each batch, on the device, without a wait.

    Args:
        wanted: of `METRICS`.
        tokenizer: decodes for the word accuracy.
        shifts: whether `Trainer` averages the loss without the first label of a sample; it goes by the model.
    """

    def __init__(self, wanted: Collection[str], tokenizer: Any, shifts: bool) -> None:
        self.predicts = bool({"token_accuracy", "word_accuracy"} & {*wanted})
        self._tokenizer = tokenizer if "word_accuracy" in wanted else None
        self._shifts = shifts
        self._rows: list[Tensor] = []

    def add(self, loss: Tensor, labels: Tensor, logits: Tensor | None, kept: int, first: int) -> None:
        """One batch.

        Args:
            loss: (), as `Trainer` has computed it.
            labels: (samples, length), the first one of each sample is predicted from nothing and does not count.
            logits: (samples, length, vocabulary), or None where nothing is predicted.
            kept: how many of the samples count; those after them are repetitions, and their labels are ignored.
            first: number of the first sample in the evaluation, over all processes.
        """
        dtype = torch.promote_types(loss.dtype, torch.float32)  # sums over one batch are exact in it
        labels = labels.to(loss.device)
        true = labels[:, 1:]
        weights = (true if self._shifts else labels)[:kept].ne(IGNORED_LABEL).sum(1)
        fewest, most = (weights.min(), weights.max()) if kept else (torch.inf, 0)
        right: Tensor | int = 0
        words = (0, 0)
        if logits is not None:
            predictions = logits.argmax(-1)[:, :-1]  # (samples, length - 1)
            right = predictions.eq(true).sum()  # an ignored label is no token
            decoded = min(kept, WORD_SAMPLES - first)
            if self._tokenizer is not None and decoded > 0:
                words = count_words(true[:decoded], predictions[:decoded], self._tokenizer)
        tokens = true.ne(IGNORED_LABEL).sum()
        row = (loss, weights.sum(), fewest, most, len(labels), kept, right, tokens, *words)
        self._rows.append(torch.stack([torch.as_tensor(x, device=loss.device).to(dtype) for x in row]))

    def table(self) -> Tensor | None:
        """(1, batches, columns), to be gathered over the processes; None for no batches."""
        return torch.stack(self._rows)[None] if self._rows else None


@dataclass(frozen=True)
class Summary:
    """An evaluation, over all processes.

    Attributes:
        loss: mean over the counted tokens; None where the mean over samples, which `Trainer` takes, is the same.
        token_accuracy, word_accuracy: None if there is nothing to count.
    """

    loss: float | None
    token_accuracy: float | None
    word_accuracy: float | None


def summarise(table: Tensor, *, averaged: bool) -> Summary:
    """What the tallies of all processes amount to.

    `Trainer` averages the losses of the batches over samples. That is the mean over tokens where every sample counts
    for the same number of them and none comes twice; there its value stays, to the bit.

    Args:
        table: (processes, batches, columns).
        averaged: whether a process's loss is divided by the mean number of tokens of all processes, not by its own.
    """
    column = dict(zip(_COLUMNS, table.cpu().double().unbind(-1), strict=True))  # each (processes, batches)
    weights = column["weight"]
    even = bool(column["fewest"].min() == column["most"].max() and column["rows"].sum() == column["kept"].sum())
    loss = None
    if not even and weights.sum() > 0:
        shares = weights.mean(0).expand_as(weights) if averaged else weights
        # A batch without a counted token has no loss: 0 / 0.
        sums = torch.where(shares > 0, column["loss"] * shares, 0.0)
        loss = float(sums.sum() / weights.sum())
    return Summary(
        loss,
        _ratio(column["right"], column["tokens"]),
        _ratio(column["right_words"], column["words"]),
    )


def _ratio(part: Tensor, whole: Tensor) -> float | None:
    return float(part.sum() / whole.sum()) if whole.sum() > 0 else None
