"""What the model learns of a text that is cut into samples: every token once, after a prompt that leads up to it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from morphing_trainer.data import continuation
from morphing_trainer.data.continuation import Cutter, cuts, sentence_bounds, sentence_starts, tokens_and_ends
from morphing_trainer.data.documents import Document
from morphing_trainer.data.making import Making, make_samples
from morphing_trainer.data.packing import Packer
from morphing_trainer.data.samples import Continuations
from morphing_trainer.data.tokenizer import train_tokenizer
from morphing_trainer.errors import DataError

PROSE = "Mr. Smith paid $3.50 for it. Did he? He did! Über 漢字。\n\nA new paragraph, e.g. this one. It ends here.\n"
WORDS = st.sampled_from(
    ["Mr. Smith", "went", "home", "3.5", "and so on", "“Yes”", "naïve", "漢字", "x" * 30, "\n\n", "a"]
)
ENDS = st.sampled_from([". ", "! ", "? ", ".\n", "。", "; ", " ", "...  "])
TEXTS = st.lists(st.tuples(WORDS, ENDS), min_size=1, max_size=60).map(lambda pairs: "".join(map("".join, pairs)))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([PROSE] * 3, 300)


def samples(tokenizer: Any, size: int, **document: Any) -> list[tuple[list[int], list[int]]]:
    found = Cutter(tokenizer, size).samples(Document(**document))
    return [(prompt.tolist(), truth.tolist()) for prompt, truth in found]


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def decoded(tokenizer: Any, size: int, **document: Any) -> list[tuple[str, str]]:
    return [(tokenizer.decode(p), tokenizer.decode(t)) for p, t in samples(tokenizer, size, **document)]


@settings(max_examples=150)
@given(
    text=TEXTS, title=st.sampled_from(["", "Home", "A rather long title, longer than fits"]), size=st.integers(2, 70)
)
def test_every_token_of_a_text_is_the_truth_of_exactly_one_sample(
    tokenizer: PreTrainedTokenizerFast, text: str, title: str, size: int
) -> None:
    if text.isspace():
        return
    found = samples(tokenizer, size, text=text, title=title)
    stream = [*ids(tokenizer, text), tokenizer.eos_token_id]
    assert [token for _, truth in found for token in truth] == stream
    assert stream == np.concatenate(Packer(tokenizer)({"text": [text]})["input_ids"]).tolist()
    heading = ids(tokenizer, f"{title}\n")[: size // 4] if title else []
    end_of_text = [] if heading else [tokenizer.eos_token_id]
    position = 0
    for number, (prompt, truth) in enumerate(found):
        assert prompt, "without a prompt, nothing would predict the first token"
        assert truth
        assert len(prompt) + len(truth) <= size
        assert prompt[: len(heading)] == heading
        context = prompt[len(heading) :]
        if number == 0:
            assert context == end_of_text
        else:
            assert context == stream[position - len(context) : position], "what stands right before the truth"
        position += len(truth)


@settings(max_examples=80)
@given(text=TEXTS, size=st.integers(40, 80))
def test_samples_end_where_sentences_end_and_prompts_are_the_last_sentence(
    tokenizer: PreTrainedTokenizerFast, text: str, size: int
) -> None:
    _, ends = tokens_and_ends(tokenizer, text)
    bounds = sentence_bounds(text, ends, "en")
    bounds[-1] += 1
    longest = max(later - earlier for earlier, later in pairwise(bounds))
    if longest > size // 2 - 1:
        return
    sentences = set(bounds)
    found = list(cuts(bounds, size, 0, 1, lambda at: True))
    for cut in found:
        assert {cut.start, cut.stop} <= sentences
        before = max((bound for bound in bounds if bound < cut.start), default=-1)
        assert cut.context == cut.start - before
    for cut, following in pairwise(found):
        first_left_out = min(bound for bound in bounds if bound > following.start)
        assert cut.context + first_left_out - cut.start > size, "as many sentences as fit"


def test_a_text_in_samples(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "One is here. Two comes. Mr. Smith is next. Four was it."
    found = decoded(tokenizer, 40, text=text, title="Count")
    assert found[0][0] == "Count\n"
    assert "".join(truth for _, truth in found) == text + "<|endoftext|>"
    assert all(prompt.startswith("Count\n") for prompt, _ in found)
    assert len(found) > 1
    starts = [truth.strip().split()[0] for _, truth in found]
    assert set(starts) <= {"One", "Two", "Mr.", "Four"}, "no sentence begins at Smith"


def test_a_text_that_fits_is_one_sample(tokenizer: PreTrainedTokenizerFast) -> None:
    assert decoded(tokenizer, 400, text=PROSE) == [("<|endoftext|>", PROSE + "<|endoftext|>")]
    assert decoded(tokenizer, 400, text=PROSE, title="T") == [("T\n", PROSE + "<|endoftext|>")]


def test_a_sentence_longer_than_the_context_is_cut_between_words(tokenizer: PreTrainedTokenizerFast) -> None:
    text = " ".join(["word"] * 60)
    found = samples(tokenizer, 20, text=text)
    assert len(found) > 6
    for prompt, truth in found[1:]:
        assert tokenizer.decode(truth).startswith((" word", "word", "<|endoftext|>"))
        assert 6 <= len(prompt) <= 10, "half a sample of what came before"
    for _, truth in samples(tokenizer, 20, text="x" * 100)[:-1]:  # a word longer than a sample has no place to cut
        assert len(truth) == 10


def test_a_prompt_and_its_truth_are_one_sample(tokenizer: PreTrainedTokenizerFast) -> None:
    found = samples(tokenizer, 64, text="4.", prompt="What is 2 + 2?\n")
    assert found == [(ids(tokenizer, "What is 2 + 2?\n"), [*ids(tokenizer, "4."), tokenizer.eos_token_id])]
    titled = samples(tokenizer, 64, text="4.", prompt="2 + 2 = ", title="Sums")
    assert [tokenizer.decode(prompt) for prompt, _ in titled] == ["Sums\n2 + 2 = "]


def test_a_prompt_that_is_too_long_keeps_its_end(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = ids(tokenizer, "word " * 50)
    ((kept, truth),) = samples(tokenizer, 20, text="yes", prompt="word " * 50)
    assert truth == [*ids(tokenizer, "yes"), tokenizer.eos_token_id]
    assert kept == prompt[len(prompt) - (20 - len(truth)) :], "all that there is room for"
    first, *others = samples(tokenizer, 20, text=PROSE, prompt="word " * 50)
    assert len(first[0]) <= 10, "a truth that goes on for long has half a sample at least"
    assert [token for _, truth in [first, *others] for token in truth] == [*ids(tokenizer, PROSE), 0]


def test_a_document_in_pieces_goes_on_from_piece_to_piece(tokenizer: PreTrainedTokenizerFast) -> None:
    lines = [f"Sentence {number} is here. And another one.\n" for number in range(12)]
    rows = {
        "text": ["".join(lines[:6]), "".join(lines[6:]), "Another text."],
        "before": [None, "".join(lines[3:6]), None],
        "continues": [True, False, False],
    }
    found = Cutter(tokenizer, 48)(rows)
    parts = [(row[:prompt], row[prompt:]) for row, prompt in zip(found["input_ids"], found["prompt"], strict=True)]
    learnt = tokenizer.decode(np.concatenate([truth for _, truth in parts]))
    assert learnt == "".join(lines) + "<|endoftext|>Another text.<|endoftext|>"
    starts = np.flatnonzero(found["starts"])
    assert starts.tolist() == [0, len(parts) - 1]
    second = next(number for number, (_, truth) in enumerate(parts) if tokenizer.decode(truth).startswith("Sentence 6"))
    assert tokenizer.decode(parts[second][0]) == "And another one.\n"


def test_sentences_are_those_of_the_language(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Das sind z. B. zwei. Und Dr. Maier kam am 3. Mai. Ja."
    german = [text[start:] for start in sentence_starts(text, "de")]
    assert [rest.split()[0] for rest in german] == ["Und", "Ja."]
    assert sentence_starts(text, "de") != sentence_starts(text, "hi")
    by_language = {
        language: make_samples(rows(text * 3), Making(tokenizer, "continuation", 40, language))
        for language in ("de", "hi")
    }
    assert by_language["de"].fingerprint != by_language["hi"].fingerprint


@settings(max_examples=40)
@given(text=st.text(alphabet="ab. !?\n\u00a0é漢。😀", min_size=1, max_size=80), repeat=st.sampled_from([1, 300]))
def test_sentence_starts_are_places_in_the_text(text: str, repeat: int) -> None:
    """More than 10,000 characters are handled by the library in another way."""
    whole = text * repeat
    starts = sentence_starts(whole, "en")
    assert starts == sorted(set(starts))
    assert all(0 < start < len(whole) for start in starts)
    assert all(not whole[start].isspace() or whole[start:].strip() for start in starts)


def test_paragraphs_are_kept_in_long_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    text = ("A sentence. " * 40 + "\n\n") * 50
    assert len(text) > 20_000
    truths = [token for _, truth in samples(tokenizer, 64, text=text) for token in truth]
    assert truths == [*ids(tokenizer, text), tokenizer.eos_token_id]


def rows(*documents: str | None, **columns: list[str | None]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": list(documents), **columns})


def test_samples_on_disk_know_where_texts_begin(tokenizer: PreTrainedTokenizerFast) -> None:
    data = rows(PROSE * 2, "", "Short.", None, PROSE, title=["Two", "none", "", None, "One"])
    found = make_samples(data, Making(tokenizer, "continuation", 48))
    assert isinstance(found, Continuations)
    expected = [
        sample
        for text, title in [(PROSE * 2, "Two"), ("Short.", ""), (PROSE, "One")]
        for sample in samples(tokenizer, 48, text=text, title=title)
    ]
    assert len(found) == len(expected)
    for index, (prompt, truth) in enumerate(expected):
        sample = found[index]
        assert sample["input_ids"].dtype == sample["labels"].dtype == np.int64
        assert sample["input_ids"].tolist() == [*prompt, *truth]
        assert sample["labels"].tolist() == [*[-100] * len(prompt), *truth]
    firsts = np.cumsum(
        [0, *(len(samples(tokenizer, 48, text=text, title=t)) for text, t in [(PROSE * 2, "Two"), ("Short.", "")])]
    )
    assert found.text_starts.tolist() == firsts.tolist()
    assert found.block_size == 48
    sizes = [len(prompt) + len(truth) for prompt, truth in expected]
    assert found.tokens_per_sample == pytest.approx(np.mean(sizes))
    assert found.tokens_of(np.array([2, 0, 2])) == 2 * sizes[2] + sizes[0]
    assert found.counts is not None
    assert (found.counts.documents, found.counts.blank, found.counts.short) == (5, 2, 1)


def test_text_starts_count_on_over_the_batches_that_rows_are_read_in(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    from morphing_trainer.data import making

    whole = make_samples(rows(*[PROSE] * 6), Making(tokenizer, "continuation", 40))
    monkeypatch.setitem(making.ROWS_WRITTEN, "continuation", 5)
    monkeypatch.setattr(making, "VERSION", "other")
    parts = make_samples(rows(*[PROSE] * 6), Making(tokenizer, "continuation", 40))
    assert isinstance(whole, Continuations) and isinstance(parts, Continuations)
    assert np.array_equal(whole.text_starts, parts.text_starts)
    assert np.array_equal(whole.offsets, parts.offsets)
    assert np.array_equal(whole.tokens, parts.tokens)


def test_blank_documents_alone_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"validation data: has no text.*Read: 3 documents \(3 blank"):
        make_samples(rows("", None, " \n"), Making(tokenizer, "continuation", 40), where="validation data")


def test_a_tokenizer_without_places_is_refused(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(DataError, match="Use a fast tokenizer, or sample_mode packing"):
        make_samples(rows(PROSE), Making(tokenizer, "continuation", 40))


def test_tokens_are_those_of_packing_also_in_pieces(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, ends = tokens_and_ends(tokenizer, PROSE * 4)
    monkeypatch.setattr(continuation.cut_long, "__defaults__", (30,))
    pieces, piece_ends = tokens_and_ends(tokenizer, PROSE * 4)
    assert len(continuation.cut_long(PROSE * 4)) > 5
    assert np.array_equal(whole, pieces)
    assert np.array_equal(ends, piece_ends)
