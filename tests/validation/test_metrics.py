"""The metrics against values computed by hand, and within their bounds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from morphing_trainer.errors import ConfigError
from morphing_trainer.validation.metrics import WORD_SAMPLES, Tally, count_words, perplexity, summarise, words_at
from morphing_trainer.validation.names import METRICS, metric_names
from tests.validation.common import tokenizer


def counted(truth: str, said: list[int]) -> tuple[int, int]:
    labels = torch.tensor([tokenizer()(truth)["input_ids"]])
    return count_words(labels, torch.tensor([said]), tokenizer())


def test_a_word_is_right_at_its_own_place() -> None:
    truth = "the cat sat down on it"
    ids = tokenizer()(truth)["input_ids"]
    assert counted(truth, ids) == (6, 6)
    *_, (start, _) = words_at(ids, tokenizer())
    wrong = ids[:start] + [token + 1 for token in ids[start:]]
    assert counted(truth, wrong) == (5, 6)


def test_repeating_the_input_one_place_later_gets_no_words_right() -> None:
    """What an untrained model with tied embeddings does."""
    truth = "every word of this text stands there once only"
    ids = tokenizer()(truth)["input_ids"]
    assert counted(truth, [tokenizer().eos_token_id, *ids[:-1]]) == (0, 9)


@given(st.lists(st.sampled_from(["a", "bc", "long", "é", "\n", "  ", "<|endoftext|>"]), min_size=1, max_size=12))
def test_words_are_those_that_white_space_separates(parts: list[str]) -> None:
    text = " ".join(parts)
    ids = tokenizer()(text)["input_ids"]
    expected = text.replace("<|endoftext|>", " ").split()
    found = [tokenizer().decode(ids[start:stop]).strip() for start, stop in words_at(ids, tokenizer())]
    assert found == expected
    if expected:
        assert counted(text, ids) == (len(expected), len(expected))


def test_perplexity_of_any_loss() -> None:
    assert perplexity(math.log(7)) == pytest.approx(7)
    assert perplexity(1e4) == perplexity(math.inf) == math.inf
    assert math.isnan(perplexity(math.nan))


def logits_for(tokens: Tensor, vocabulary: int) -> Tensor:
    """(samples, length, vocabulary): place i predicts what `tokens` has at i + 1."""
    shifted = torch.roll(tokens, -1, dims=1)
    return torch.nn.functional.one_hot(shifted.clamp(min=0), vocabulary).float()


def encoded(*texts: str, length: int = 24) -> Tensor:
    """Labels, end-of-text in front (predicted from nothing), ignored where the text is over."""
    rows = [[tokenizer().eos_token_id, *tokenizer()(text)["input_ids"]] for text in texts]
    return torch.tensor([row + [-100] * (length - len(row)) for row in rows])


def test_accuracies_by_hand() -> None:
    """Two samples of 5 words each, of which one and two end with a wrong token."""
    x = tokenizer()("x")["input_ids"]
    said: tuple[list[int], list[int]] = ([], [])
    true: tuple[list[int], list[int]] = ([], [])
    samples = [(["It", " learns,", " it", " grows", " on"], {0}), (["zq", *[" zq"] * 4], {1, 4})]
    for row, (words, wrong) in enumerate(samples):
        for number, word in enumerate(words):
            tokens = tokenizer()(word)["input_ids"]
            true[row].extend(tokens)
            said[row].extend(tokens[:-1] + x if number in wrong else tokens)
    longest = max(map(len, true)) + 1
    labels = torch.tensor([[0, *row] + [-100] * (longest - 1 - len(row)) for row in true])
    guesses = torch.tensor([[0, *row] + [0] * (longest - 1 - len(row)) for row in said])
    tally = Tally(METRICS, tokenizer(), shifts=True)
    tally.add(torch.tensor(2.0), labels, logits_for(guesses, 320), kept=2, first=0)
    table = tally.table()
    assert table is not None
    found = summarise(table, averaged=False)
    tokens_in_all = sum(map(len, true))
    assert found.token_accuracy == pytest.approx((tokens_in_all - 3) / tokens_in_all)
    assert found.word_accuracy == pytest.approx((4 + 3) / 10)


def test_only_the_truth_counts() -> None:
    """A prompt predicted all wrong, and padding, take nothing away; the second sample is a repetition."""
    labels = encoded("what is new begins there")
    logits = logits_for(labels, 320)
    labels = labels.clone()
    labels[:, :4] = -100
    logits[:, :3] = 0.0  # the prompt is predicted as token 0
    repeated = torch.full_like(labels, -100)
    tally = Tally(METRICS, tokenizer(), shifts=True)
    tally.add(torch.tensor(1.5), torch.cat([labels, repeated]), torch.cat([logits, logits * 0]), kept=1, first=0)
    table = tally.table()
    assert table is not None
    found = summarise(table, averaged=False)
    assert found.token_accuracy == found.word_accuracy == 1.0
    assert found.loss == 1.5  # not even over the samples: our own mean


def batch(loss: float, *counts: int, shape: int = 9, kept: int | None = None) -> tuple[Tensor, Tensor, None, int, int]:
    """A batch whose samples have so many counted labels each."""
    labels = torch.full((len(counts), shape), -100)
    for row, count in enumerate(counts):
        labels[row, shape - count :] = 1
    return torch.tensor(loss), labels, None, len(counts) if kept is None else kept, 0


def mean(*batches: tuple[Tensor, Tensor, None, int, int]) -> float | None:
    tally = Tally([], None, shifts=True)
    for values in batches:
        tally.add(*values)
    table = tally.table()
    assert table is not None
    return summarise(table, averaged=False).loss


def test_loss_is_the_mean_over_tokens() -> None:
    assert mean(batch(2.0, 4, 4), batch(3.0, 1, 1)) == pytest.approx((2.0 * 8 + 3.0 * 2) / 10)
    assert mean(batch(2.0, 5, 3), batch(3.0, 1)) == pytest.approx((2.0 * 8 + 3.0) / 9)


def test_even_samples_leave_the_loss_to_the_trainer() -> None:
    assert mean(batch(2.0, 4, 4), batch(3.0, 4)) is None
    assert mean(batch(2.0, 4, 4), batch(3.0, 4, 0, kept=1)) == pytest.approx((2.0 * 8 + 3.0 * 4) / 12)


def test_a_batch_without_a_counted_token_has_no_say() -> None:
    assert mean(batch(2.0, 4), batch(math.nan, 0)) == 2.0
    assert mean(batch(math.nan, 0)) is None
    assert math.isnan(mean(batch(2.0, 4), batch(math.nan, 3)) or 0.0)


def test_two_processes() -> None:
    """Averaged: each process's loss is its sum over the mean number of tokens. Else: over its own."""
    tallies = []
    for count, total in ((6, 12.0), (2, 7.0)):
        one, other = Tally([], None, True), Tally([], None, True)
        one.add(*batch(total / 4, count))
        other.add(*batch(total / count, count))
        tallies.append((one.table(), other.table()))
    for way, averaged in ((0, True), (1, False)):
        table = torch.cat([tables[way] for tables in tallies])  # type: ignore[misc]
        assert summarise(table, averaged=averaged).loss == pytest.approx((12 + 7) / 8)


def test_words_are_counted_in_the_first_samples_only() -> None:
    labels = encoded("what is new begins there", "It learns, it grows again")
    right, wrong = logits_for(labels, 320), torch.zeros(2, 24, 320)
    tally = Tally(["word_accuracy"], tokenizer(), shifts=True)
    tally.add(torch.tensor(1.0), labels, right, kept=2, first=WORD_SAMPLES - 2)
    tally.add(torch.tensor(1.0), labels, wrong, kept=2, first=WORD_SAMPLES)
    table = tally.table()
    assert table is not None
    assert summarise(table, averaged=False).word_accuracy == 1.0
    assert summarise(table, averaged=False).token_accuracy == pytest.approx(0.5, abs=0.05)


def test_names() -> None:
    assert metric_names(None) is None
    assert metric_names("none") == metric_names(["none"]) == metric_names([]) == []
    assert metric_names("perplexity") == ["perplexity"]
    with pytest.raises(ConfigError, match="no metric 'word_acuracy'; did you mean 'word_accuracy'"):
        metric_names(["perplexity", "word_acuracy"])
