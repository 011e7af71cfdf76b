from __future__ import annotations

from itertools import pairwise
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast, default_data_collator

from morphing_trainer.data import packing
from morphing_trainer.data.making import Making, make_samples
from morphing_trainer.data.packing import Packer, cut_long
from morphing_trainer.data.samples import Blocks, collate
from morphing_trainer.data.tokenizer import train_tokenizer
from morphing_trainer.errors import DataError

PROSE = "The quick brown fox, it's said, jumps over 13 lazy dogs.\n  def f(x):\n\n\treturn x\nÜber 漢字!\n"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([PROSE] * 3, 300)


def texts(*documents: str | None) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {"text": list(documents)}, features=datasets.Features({"text": datasets.Value("string")})
    )


def pack(
    data: datasets.Dataset, tokenizer: Any, block_size: int, n_positions: int | None = None, **options: Any
) -> Blocks:
    samples = make_samples(data, Making(tokenizer, "packing", block_size), n_positions, **options)
    assert isinstance(samples, Blocks)
    return samples


def test_documents_are_joined_by_end_of_text_and_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    documents = [PROSE, "short", PROSE * 2, "x"]
    stream = [token for text in documents for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    blocks = pack(texts(*documents), tokenizer, block_size=7)
    assert blocks.tokens.dtype == np.uint16
    assert blocks.text_starts is None
    assert blocks.tokens_per_sample == 7
    assert blocks.block_size == 7
    assert len(blocks) == len(stream) // 7
    assert blocks.tokens.ravel().tolist() == stream[: len(blocks) * 7]  # only the very end is dropped
    assert tokenizer.decode(blocks.tokens.ravel()).startswith(PROSE + "<|endoftext|>short<|endoftext|>")


def test_blank_documents_add_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = pack(texts(PROSE, PROSE), tokenizer, 8)
    padded = pack(texts("", PROSE, None, " \n", PROSE, ""), tokenizer, 8)
    assert np.array_equal(plain.tokens, padded.tokens)


def test_rows_cross_the_batches_of_the_tokeniser(tokenizer: PreTrainedTokenizerFast) -> None:
    """2,500 documents are three batches of `datasets.map`; no tokens are lost between them."""
    blocks = pack(texts(*["ab c"] * 2500), tokenizer, block_size=11)
    one = [*tokenizer("ab c")["input_ids"], tokenizer.eos_token_id]
    assert blocks.tokens.ravel().tolist() == (one * 2500)[: len(blocks) * 11]
    assert len(blocks) == 2500 * len(one) // 11


@settings(derandomize=True, max_examples=80, deadline=None, database=None)
@given(text=st.text(alphabet="ab1.,'  \n\n\t\u00a0é", max_size=200), size=st.integers(1, 20))
def test_long_documents_are_cut_where_no_token_crosses(
    tokenizer: PreTrainedTokenizerFast, text: str, size: int
) -> None:
    pieces = cut_long(text, size)
    assert "".join(pieces) == text
    assert [token for piece in pieces for token in tokenizer(piece)["input_ids"]] == tokenizer(text)["input_ids"]


def test_a_long_document_is_cut_into_pieces_of_bounded_size(tokenizer: PreTrainedTokenizerFast) -> None:
    lines, words = "word\n" * 1000, "word " * 1000
    for text in (lines, words):
        pieces = cut_long(text, 50)
        assert all(50 <= len(piece) <= 110 for piece in pieces)
        assert len(pieces) > 40
    assert all(before.endswith("\n") and not after[0].isspace() for before, after in pairwise(cut_long(lines, 50)))
    assert cut_long("x" * 1000, 50) == ["x" * 1000]  # nowhere to cut


def test_cutting_and_grouping_change_no_token(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = {"text": [PROSE * 5, "tiny", PROSE * 3]}
    whole = Packer(tokenizer)(documents)
    assert whole["closes"] == [True] * 3
    monkeypatch.setattr(packing, "GROUP_CHARACTERS", 120)
    monkeypatch.setattr(packing.cut_long, "__defaults__", (30,))
    cut = Packer(tokenizer)(documents)
    assert len(cut["closes"]) > 3  # the long ones do take several rows
    assert sum(cut["closes"]) == 3
    assert np.array_equal(np.concatenate(cut["input_ids"]), np.concatenate(whole["input_ids"]))


def test_a_document_may_be_longer_than_the_tokenizers_limit(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    limited = train_tokenizer([PROSE] * 3, 300)
    limited.model_max_length = 8
    assert np.array_equal(pack(texts(PROSE), limited, 8).tokens, pack(texts(PROSE), tokenizer, 8).tokens)
    assert not caplog.records


def test_samples_and_batches(tokenizer: PreTrainedTokenizerFast) -> None:
    blocks = pack(texts(PROSE), tokenizer, 8)
    samples = blocks.__getitems__([3, 0, 3])
    for sample, index in zip(samples, (3, 0, 3), strict=True):
        assert sample.keys() == {"input_ids", "labels"}
        for name, row in blocks[index].items():
            assert row.dtype == np.int64
            assert np.array_equal(row, sample[name])
            assert np.array_equal(row, blocks.tokens[index])
    batch = collate(samples)
    assert batch["input_ids"].dtype == torch.int64
    assert batch["input_ids"].shape == (3, 8)
    assert torch.equal(batch["input_ids"], batch["labels"])
    other = default_data_collator(samples)
    assert torch.equal(other["input_ids"], batch["input_ids"])
    assert torch.equal(other["labels"], batch["labels"])


def test_a_batch_shares_no_memory() -> None:
    blocks = Blocks(np.arange(12, dtype=np.int32).reshape(3, 4))
    batch = collate(blocks.__getitems__([0, 1]))
    batch["labels"].fill_(-100)
    assert batch["input_ids"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]] == blocks.tokens[:2].tolist()


def test_text_shorter_than_a_block_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = len(tokenizer(PROSE)["input_ids"]) + 1
    assert len(pack(texts(PROSE), tokenizer, tokens)) == 1
    message = f"validation data: has {tokens} tokens, less than one block of {tokens + 1}.*smaller block_size"
    with pytest.raises(DataError, match=message):
        pack(texts(PROSE), tokenizer, tokens + 1, where="validation data")
    with pytest.raises(DataError, match="training data: has 0 tokens"):
        pack(texts("", " "), tokenizer, 8)


def test_block_sizes_that_cannot_work_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    assert pack(texts(PROSE), tokenizer, 8, n_positions=8)
    with pytest.raises(DataError, match=r"block_size: is 9, but the model takes at most 8 tokens.*Set block_size to 8"):
        pack(texts(PROSE), tokenizer, 9, n_positions=8)
    with pytest.raises(DataError, match=r"block_size: must be at least 2.*is 1"):
        pack(texts(PROSE), tokenizer, 1)


def test_a_tokenizer_without_end_of_text_is_refused() -> None:
    tokenizer = train_tokenizer([PROSE], 300)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end-of-text token"):
        pack(texts(PROSE), tokenizer, 8)


def test_a_title_is_a_line_and_a_prompt_stands_before_its_truth(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = {
        "text": ["One.", "Two.", "Three.", None],
        "title": [" First ", None, "", None],
        "prompt": [None, "2 + 2 =", "alone", "What? "],
        "truth": [None, " 4", None, ""],
    }
    blocks = pack(datasets.Dataset.from_dict(rows), tokenizer, 2)
    text = tokenizer.decode(blocks.tokens.ravel())
    assert text.startswith("First\nOne.<|endoftext|>2 + 2 = 4<|endoftext|>Three.")  # the last row has no truth
    assert blocks.counts is not None
    assert (blocks.counts.documents, blocks.counts.blank) == (4, 1)


def test_documents_shorter_than_a_block_are_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    """Also across the batches that rows are read in, and where a document takes several rows."""
    documents = ["x", PROSE, "", "y", PROSE * 4000, "z"]
    blocks = pack(texts(*documents), tokenizer, 32)
    assert len(Packer(tokenizer)({"text": documents})["closes"]) > len(documents)
    assert blocks.counts is not None
    assert (blocks.counts.documents, blocks.counts.blank, blocks.counts.short) == (6, 1, 3)
    stream = sum(len(tokenizer(text)["input_ids"]) + 1 for text in documents if text)
    assert blocks.counts.tokens == stream
    assert str(blocks.counts).startswith("6 documents (1 blank and left out, 3 shorter than a sample)")


def test_too_little_text_is_refused_with_what_was_read(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"Read: 3 documents \(2 blank and left out, 1 shorter than a sample\)"):
        pack(texts("", "a", None), tokenizer, 64)
