"""What an evaluation says beside the loss, from a few numbers per batch: no logits are kept.

token accuracy  = predicted tokens that are the true one / true tokens, each predicted from the true tokens before it
word accuracy   = 1 - Hamming distance / words of the truth
perplexity      = exp(loss)

A word is what white space or a special token separates, and is right if the most likely tokens at its own places decode
to it. So the words of truth and prediction are two lists of one length, and their edit distance is the one that knows
replacements only (Hamming's). With insertions and deletions a model that repeats its input one place later, as an
untrained one with tied embeddings does, would have nearly all words right. Decoding takes time, so words are counted in
the first `WORD_SAMPLES` samples of an evaluation only.

Only labels that are not -100 count, for all of them: prompts and padding do not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rapidfuzz.distance import Hamming
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


def words_at(tokens: Sequence[int], tokenizer: Any) -> list[tuple[int, int]]:
    """The places [start, stop) of each word in a row of tokens; white space and special tokens alone are no words."""
    special = {*tokenizer.all_special_ids}
    texts = tokenizer.batch_decode([[token] for token in tokens], clean_up_tokenization_spaces=False)
    found: list[tuple[int, int]] = []
    fresh = True
    for place, (token, text) in enumerate(zip(tokens, texts, strict=True)):
        if token in special or text.isspace():
            fresh = True
            continue
        if fresh or text[:1].isspace():
            found.append((place, place + 1))
        else:
            found[-1] = (found[-1][0], place + 1)
        fresh = text[-1:].isspace()
    return found


def count_words(labels: Tensor, predictions: Tensor, tokenizer: Any) -> tuple[int, int]:
    """(words right, words of the truth) in some samples.

    Args:
        labels: (samples, places), `IGNORED_LABEL` where nothing counts.
        predictions: (samples, places), the most likely token at each place.
        tokenizer: decodes them.
    """
    true: list[list[int]] = []
    predicted: list[list[int]] = []
    for row, guesses in zip(labels.cpu(), predictions.cpu(), strict=True):
        counted = row != IGNORED_LABEL
        truth, guessed = row[counted].tolist(), guesses[counted].tolist()
        for start, stop in words_at(truth, tokenizer):
            true.append(truth[start:stop])
            predicted.append(guessed[start:stop])
    texts = tokenizer.batch_decode([*true, *predicted], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    words = [text.strip() for text in texts]
    return int(Hamming.similarity(words[: len(true)], words[len(true) :])), len(true)


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
