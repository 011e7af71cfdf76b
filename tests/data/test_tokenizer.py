from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, GPT2Config, PreTrainedTokenizerFast

from morphing_trainer.data.tokenizer import check_fits, load_tokenizer, train_tokenizer
from morphing_trainer.errors import DataError

TEXTS = ["The cat sat on the mat, and the cat's hat sat on the cat .\n" * 4, "def f(x):\n    return x + 1\n" * 4]
HARD = "  Hello , world !  it 's\n\n\n  \tünïcode 漢字 🎉\r\n<|endoftext|>x \u0000"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 280)


def test_it_is_a_byte_level_bpe_with_end_of_text(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == 280
    assert tokenizer.bos_token == tokenizer.eos_token == tokenizer.unk_token == "<|endoftext|>"
    assert tokenizer.clean_up_tokenization_spaces is False
    assert tokenizer("cat")["input_ids"] != tokenizer(" cat")["input_ids"]  # no space is put in front
    assert len(tokenizer(" the cat")["input_ids"]) < len(" the cat")  # it did learn merges
    assert tokenizer("a")["input_ids"] == tokenizer("a", add_special_tokens=False)["input_ids"]


@settings(derandomize=True, max_examples=100, deadline=None, database=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_training_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of threads; the library's hash tables are seeded anew each time."""
    trained = [train_tokenizer(TEXTS, 280).backend_tokenizer.to_str() for _ in range(3)]
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    trained.append(train_tokenizer(TEXTS, 280).backend_tokenizer.to_str())
    assert len(set(trained)) == 1


@pytest.mark.parametrize("beside_a_model", [False, True])
def test_it_is_saved_and_loaded_without_our_code(tmp_path: Path, beside_a_model: bool) -> None:
    tokenizer = train_tokenizer(TEXTS, 280)
    tokenizer.model_max_length = 4096
    tokenizer.save_pretrained(tmp_path)
    if beside_a_model:  # whose config would choose the tokenizer's class, if the tokenizer did not name one
        GPT2Config(vocab_size=280, bos_token_id=0, eos_token_id=0).save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(str(tmp_path))):
        for text in (*TEXTS, HARD, ""):
            ids = tokenizer(text)["input_ids"]
            assert loaded(text)["input_ids"] == ids
            assert loaded.decode(ids) == text
        assert (loaded.eos_token_id, loaded.bos_token_id) == (tokenizer.eos_token_id, tokenizer.bos_token_id)
        assert len(loaded) == 280
        assert loaded.model_max_length == 4096


def test_few_texts_give_a_smaller_vocabulary() -> None:
    assert len(train_tokenizer(["ab"], 1000)) == 258
    assert len(train_tokenizer([], 1000)) == 257


def test_a_vocabulary_without_room_for_all_bytes_is_refused() -> None:
    assert len(train_tokenizer(TEXTS, 257)) == 257
    with pytest.raises(DataError, match=r"vocab_size: must be at least 257.*is 256"):
        train_tokenizer(TEXTS, 256)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    check_fits(tokenizer, 280)
    check_fits(tokenizer, 304)
    with pytest.raises(DataError, match=r"tokenizer: has 280 tokens.*vocabulary has 279.*Set vocab_size to 280"):
        check_fits(tokenizer, 279)


def test_a_missing_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer '.*nowhere': there is no such folder\. Check the path"):
        load_tokenizer(str(tmp_path / "nowhere"))


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be loaded \(.*\)\. Give a folder that `save_pretrained`"):
        load_tokenizer(str(tmp_path))


def test_a_model_folder_without_a_tokenizer_gives_no_toy(tmp_path: Path) -> None:
    GPT2Config(vocab_size=280, bos_token_id=0, eos_token_id=0).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="has no vocabulary"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer_is_an_error(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, content: str) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match="cannot be loaded"):
        load_tokenizer(str(tmp_path))
