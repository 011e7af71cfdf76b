"""Samples are made once, the same in one process or several, and found again by what decides them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from morphing_trainer.data import making
from morphing_trainer.data.continuation import Cutter
from morphing_trainer.data.fingerprints import tokenizer_fingerprint
from morphing_trainer.data.making import Making, make_samples
from morphing_trainer.data.packing import Packer
from morphing_trainer.data.samples import Blocks, Continuations
from morphing_trainer.data.store import LEFTOVER, building, cache_folder
from morphing_trainer.data.tokenizer import train_tokenizer, trained_tokenizer
from morphing_trainer.errors import DataError

DOCUMENTS = [f"Document {number}. It has words, {number % 7} of them. And an end.\n" * 3 for number in range(300)]
MODES = ["packing", "continuation"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(DOCUMENTS[:20], 300)


def rows(documents: list[str] = DOCUMENTS) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": documents})


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every batch of documents that is tokenised from here on: how many there were in it."""
    batches: list[int] = []
    for encoder in (Packer, Cutter):
        original: Any = encoder.__call__

        def counted(self: Any, batch: Any, original: Any = original) -> Any:
            batches.append(len(batch["text"]))
            return original(self, batch)

        monkeypatch.setattr(encoder, "__call__", counted)
    return batches


@pytest.mark.parametrize("mode", MODES)
def test_a_second_run_tokenises_nothing(tokenizer: PreTrainedTokenizerFast, encoded: list[int], mode: Any) -> None:
    first = make_samples(rows(), Making(tokenizer, mode, 32))
    assert sum(encoded) == 300
    stamp = Path(first.tokens.filename).stat().st_mtime_ns
    again = make_samples(rows(), Making(tokenizer, mode, 32, workers=2))
    assert sum(encoded) == 300, "the second run has tokenised again"
    assert Path(again.tokens.filename).stat().st_mtime_ns == stamp
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.tokens, first.tokens)


def changed(tokenizer: PreTrainedTokenizerFast, what: str) -> tuple[datasets.Dataset, Making]:
    """The same request, but for one thing."""
    texts, made = rows(), Making(tokenizer, "continuation", 32)
    match what:
        case "text":
            return rows([*DOCUMENTS[:-1], "Another end."]), made
        case "order":
            return rows(DOCUMENTS[::-1]), made
        case "fewer":
            return texts.select(range(299)), made
        case "mode":
            return texts, Making(tokenizer, "packing", 32)
        case "block_size":
            return texts, Making(tokenizer, "continuation", 33)
        case "language":
            return texts, Making(tokenizer, "continuation", 32, "de")
        case "vocabulary":
            return texts, Making(train_tokenizer(DOCUMENTS[:20], 299), "continuation", 32)
        case "end of text":
            other = train_tokenizer(DOCUMENTS[:20], 300)
            other.eos_token = "a"
            return texts, Making(other, "continuation", 32)
    raise AssertionError(what)


@pytest.mark.parametrize(
    "what", ["text", "order", "fewer", "mode", "block_size", "language", "vocabulary", "end of text"]
)
def test_whatever_decides_the_samples_makes_them_anew(
    tokenizer: PreTrainedTokenizerFast, encoded: list[int], what: str
) -> None:
    before = make_samples(rows(), Making(tokenizer, "continuation", 32))
    encoded.clear()
    after = make_samples(*changed(tokenizer, what))
    assert encoded
    assert after.tokens.filename != before.tokens.filename
    assert (after.fingerprint == before.fingerprint) is (what == "language"), "these sentences end in any language"


def test_the_language_does_not_matter_to_packing(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len({Making(tokenizer, "packing", 32, language).key("x") for language in ("en", "de")}) == 1


def test_a_tokenizer_is_known_by_what_it_does(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    name = tokenizer_fingerprint(tokenizer)
    twin = train_tokenizer(DOCUMENTS[:20], 300)
    twin.name_or_path = "elsewhere"
    twin("a text", truncation=True, max_length=1)
    assert tokenizer_fingerprint(twin) == name
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(PreTrainedTokenizerFast.from_pretrained(tmp_path)) == name
    assert tokenizer_fingerprint(train_tokenizer(DOCUMENTS[:20], 290)) != name


@pytest.mark.parametrize("mode", MODES)
def test_several_processes_make_the_same(tokenizer: PreTrainedTokenizerFast, mode: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(making, "BATCH_CHARACTERS", 5_000)  # else there is one batch, for one process
    one = make_samples(rows(), Making(tokenizer, mode, 32, workers=1))
    monkeypatch.setattr(making, "VERSION", "other")
    two = make_samples(rows(), Making(tokenizer, mode, 32, workers=2))
    assert one.tokens.filename != two.tokens.filename
    assert one.fingerprint == two.fingerprint
    assert np.array_equal(one.tokens, two.tokens)
    if isinstance(one, Continuations):
        assert isinstance(two, Continuations)
        assert np.array_equal(one.offsets, two.offsets)
        assert np.array_equal(one.text_starts, two.text_starts)


@pytest.mark.parametrize(
    ("asked", "characters", "batches", "expected"),
    [(None, 1e4, 10, 1), (3, 1e4, 10, 3), (3, 1e9, 2, 2), (1, 1e9, 10, 1), (4, 0, 0, 1)],
)
def test_processes_are_used_where_they_pay_off(asked: Any, characters: float, batches: int, expected: int) -> None:
    assert making._workers(asked, characters, batches) == expected


def test_without_a_number_there_is_a_process_for_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making.os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert making._workers(None, 1e9, 10) == 3
    assert making._workers(None, 1e9, 2) == 2


def test_rows_read_at_once_are_fewer_the_longer_they_are() -> None:
    assert making.rows_at_once(rows(["ab"] * 50)) == 1000
    assert making.rows_at_once(rows(["a" * 10_000] * 50)) == 100
    assert making.rows_at_once(rows(["a" * 3_000_000] * 2)) == 1


def test_tokens_lie_in_a_file_in_the_smallest_type(tokenizer: PreTrainedTokenizerFast) -> None:
    found = make_samples(rows(), Making(tokenizer, "packing", 32))
    assert isinstance(found, Blocks)
    assert isinstance(found.tokens, np.memmap)
    assert found.tokens.dtype == np.uint16
    assert not found.tokens.flags.writeable
    large = train_tokenizer(DOCUMENTS[:20], 300)
    large.add_tokens([f"<extra {number}>" for number in range(2**16 - 300)])
    assert len(large) == 2**16
    assert Making(large).dtype is np.uint16
    large.add_tokens(["<one more>"])
    assert Making(large).dtype is np.int32
    wide = make_samples(rows(["a <one more> b. " * 20]), Making(large, "packing", 8))
    assert wide.tokens.dtype == np.int32
    assert 2**16 in wide.tokens


@pytest.mark.parametrize("damage", ["shorter", "missing", "no meta", "bad meta", "meta without arrays"])
def test_a_damaged_entry_of_the_cache_is_made_again(
    tokenizer: PreTrainedTokenizerFast, encoded: list[int], damage: str
) -> None:
    whole = np.array(make_samples(rows(), Making(tokenizer, "packing", 32)).tokens)
    (folder,) = cache_folder().iterdir()
    tokens, meta = folder / "tokens.bin", folder / "meta.json"
    match damage:
        case "shorter":
            tokens.write_bytes(tokens.read_bytes()[:-1])
        case "missing":
            tokens.unlink()
        case "no meta":
            meta.unlink()
        case "bad meta":
            meta.write_text("{")
        case "meta without arrays":
            meta.write_text("{}")
    encoded.clear()
    assert np.array_equal(make_samples(rows(), Making(tokenizer, "packing", 32)).tokens, whole)
    assert encoded


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_was_interrupted_leaves_nothing_behind(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fail(*_: Any) -> None:
        raise error("stop")

    with monkeypatch.context() as patch:
        patch.setattr(making.SampleWriter, "finish", fail)
        with pytest.raises(error):
            make_samples(rows(), Making(tokenizer, "packing", 32))
    assert list(cache_folder().iterdir()) == []
    assert len(make_samples(rows(), Making(tokenizer, "packing", 32))) > 0
    (folder,) = cache_folder().iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["meta.json", "tokens.bin"], "the rows are gone"


# In a process of its own, which may be interrupted: a worker sends the signal to the process that started it, or dies.
SCRIPT = """
import os, signal, sys, time
import datasets
from morphing_trainer.data import making
from morphing_trainer.data.packing import Packer
from morphing_trainer.data.store import cache_folder
from morphing_trainer.data.tokenizer import train_tokenizer

class Stopped(Packer):
    def __call__(self, batch):
        if sys.argv[1] == "interrupted":
            os.kill(os.getppid(), signal.SIGINT)
            time.sleep(0.5)
        os._exit(9)

datasets.disable_progress_bars()
making.Packer, making.BATCH_CHARACTERS = Stopped, 10
texts = datasets.Dataset.from_dict({"text": ["some words"] * 8})
try:
    making.make_samples(texts, making.Making(train_tokenizer(["some words"], 260), "packing", 4, workers=2))
except BaseException as error:
    print(type(error).__name__, error, sorted(os.listdir(cache_folder())))
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("interrupted", "KeyboardInterrupt  []"),
        ("killed", "DataError preprocessing_num_workers: a process that tokenises"),
    ],
)
def test_workers_that_are_stopped(tmp_path: Path, how: str, said: str) -> None:
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SCRIPT, how]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert finished.stdout.startswith(said), finished.stdout + finished.stderr
    assert finished.stdout.rstrip().endswith("[]"), "nothing is left in the cache"


def test_the_folder_that_is_there_first_stays(tmp_path: Path) -> None:
    target = tmp_path / "entry"
    with building(target) as mine:
        (mine / "who").write_text("me")
        with building(target) as theirs:
            (theirs / "who").write_text("they")
    assert (target / "who").read_text() == "they"
    with building(target, overwrite=True) as new:
        (new / "who").write_text("new")
    assert (target / "who").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]
    assert not list(tmp_path.glob(f"{LEFTOVER}*"))


def test_a_tokenizer_is_trained_once() -> None:
    asked = []

    def texts() -> list[str]:
        asked.append(1)
        return DOCUMENTS

    first = trained_tokenizer(texts, "name", 290)
    again = trained_tokenizer(texts, "name", 290)
    assert len(asked) == 1
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(first)
    assert again(DOCUMENTS[0])["input_ids"] == first(DOCUMENTS[0])["input_ids"]
    assert again.eos_token_id == first.eos_token_id
    assert len(trained_tokenizer(texts, "name", 280)) == 280
    trained_tokenizer(texts, "other name", 290)
    assert len(asked) == 3
    for file in cache_folder().glob("*/tokenizer.json"):
        file.write_text("{")
    assert tokenizer_fingerprint(trained_tokenizer(texts, "name", 290)) == tokenizer_fingerprint(first)
    assert len(asked) == 4, "a damaged one is trained again"


def test_a_tokenizer_without_end_of_text_is_refused() -> None:
    tokenizer = train_tokenizer(DOCUMENTS[:5], 300)
    tokenizer.eos_token = None
    for mode in MODES:
        with pytest.raises(DataError, match="no end-of-text token"):
            make_samples(rows(), Making(tokenizer, mode, 8))  # type: ignore[arg-type, unused-ignore]


def test_what_a_killed_process_left_is_removed_a_day_later(tmp_path: Path) -> None:
    old, young = (tmp_path / f"{LEFTOVER}target-{name}" for name in ("old", "young"))
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, 0))
    with building(tmp_path / "target") as folder:
        (folder / "file").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"target", young.name}
