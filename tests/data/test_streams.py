"""Data read as a stream: the same samples as in one piece, nothing but tokens kept, and an end where there is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from morphing_trainer.data import files, streams
from morphing_trainer.data.making import Making
from morphing_trainer.data.opening import open_data
from morphing_trainer.data.packing import Packer
from morphing_trainer.data.request import DataRequest
from morphing_trainer.data.store import cache_folder
from morphing_trainer.data.streams import Stream, held_out, make_stream_folders, open_stream
from morphing_trainer.data.tokenizer import train_tokenizer
from morphing_trainer.data.writing import open_splits
from morphing_trainer.errors import DataError

DOCUMENTS = [f"Document {number}, with words. And a second sentence.\n" for number in range(90)]
TOKENIZER = train_tokenizer(DOCUMENTS, 300)


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return jsonl(tmp_path / "a.jsonl", [{"id": number, "text": text} for number, text in enumerate(DOCUMENTS)])


def tokens(samples: Any) -> list[int]:
    return [int(token) for token in np.ravel(samples.tokens)]


def packed(documents: list[str], size: int) -> list[int]:
    stream = np.concatenate(Packer(TOKENIZER)({"text": documents})["input_ids"]).tolist()
    return list(stream[: len(stream) // size * size])


@pytest.mark.parametrize("mode", ["packing", "continuation"])
def test_a_stream_gives_what_its_documents_give(file: str, mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BATCH_ROWS", 7)
    request = DataRequest(
        train_file=file, streaming=True, validation_split=0.1, seed=3, sample_mode=mode, block_size=16
    )
    data = open_data(request)
    found = data.samples(TOKENIZER)
    held = [number for number in range(90) if held_out(number, 0.1, 3)]
    assert len(held) == 9
    train = [text for number, text in enumerate(DOCUMENTS) if number not in held]
    if mode == "packing":
        assert tokens(found.train) == packed(train, 16)
        assert tokens(found.validation) == packed([DOCUMENTS[number] for number in held], 16)
    else:
        assert len(found.train.text_starts) == 81
        assert len(found.validation.text_starts) == 9
        learnt = np.concatenate([sample["labels"] for sample in (found.train[i] for i in range(len(found.train)))])
        assert TOKENIZER.decode(learnt[learnt != -100]) == "".join(text + "<|endoftext|>" for text in train)
    assert found.train.counts is not None and found.train.counts.documents == 81


def test_of_every_so_many_documents_one_is_held_out_as_the_seed_says() -> None:
    for fraction, every in [(0.05, 20), (0.3, 3), (0.9, 2)]:
        held = [held_out(number, fraction, 1) for number in range(every * 10)]
        assert [sum(held[start : start + every]) for start in range(0, every * 10, every)] == [1] * 10
    picks = [[held_out(number, 0.05, seed) for number in range(200)] for seed in (1, 1, 2)]
    assert picks[0] == picks[1] != picks[2]


def test_no_text_is_kept_and_a_second_run_reads_nothing(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    request = DataRequest(train_file=file, streaming=True, block_size=16)
    first = open_data(request).samples(TOKENIZER)
    kept = [path for path in cache_folder().parent.rglob("*") if path.is_file()]
    assert not any(b"second sentence" in path.read_bytes() for path in kept)

    def rows(self: Stream) -> Iterator[Any]:
        raise AssertionError("read again")

    monkeypatch.setattr(Stream, "rows", rows)
    again = open_data(request).samples(TOKENIZER)
    assert np.array_equal(again.train.tokens, first.train.tokens)
    assert again.train.fingerprint == first.train.fingerprint != again.validation.fingerprint


def test_whatever_decides_the_samples_has_another_name(file: str, tmp_path: Path) -> None:
    request = DataRequest(train_file=file, streaming=True)
    base = open_stream(request).fingerprint
    assert open_stream(request).fingerprint == base
    for changed in ({"seed": 1}, {"max_documents": 5}, {"validation_split": 0.1}, {"validation_file": file}):
        assert open_stream(DataRequest(train_file=file, streaming=True, **changed)).fingerprint != base  # type: ignore[arg-type, unused-ignore]
    jsonl(tmp_path / "a.jsonl", [{"text": text} for text in DOCUMENTS[1:]])
    assert open_stream(request).fingerprint != base


def test_an_endless_stream_ends_after_max_documents() -> None:
    def endless() -> Iterator[dict[str, str]]:
        for number in count():
            assert number <= 40, "read on"
            yield {"text": DOCUMENTS[number % 90]}

    rows = datasets.IterableDataset.from_generator(endless)
    stream = Stream(DataRequest(max_documents=40, validation_split=0.1), "endless", rows, None, "name")
    found = open_splits(*make_stream_folders(stream, Making(TOKENIZER, "packing", 16)))
    train = [text for number, text in enumerate(DOCUMENTS[:40]) if not held_out(number, 0.1, 0)]
    assert tokens(found.train) == packed(train, 16)


def test_the_limit_holds_for_each_split(file: str) -> None:
    request = DataRequest(train_file=file, validation_file=file, streaming=True, max_documents=10, block_size=8)
    found = open_data(request).samples(TOKENIZER)
    assert tokens(found.train) == tokens(found.validation) == packed(DOCUMENTS[:10], 8)


def test_a_tokenizer_is_learnt_from_the_training_part(file: str) -> None:
    request = DataRequest(train_file=file, streaming=True, validation_split=0.2, seed=1)
    made = open_data(request).tokenizer(None, 290)
    train = [text for number, text in enumerate(DOCUMENTS) if not held_out(number, 0.2, 1)]
    assert made.get_vocab() == train_tokenizer(train, 290).get_vocab()


@pytest.mark.parametrize("kind", ["folder of files", "saved", "saved with splits"])
def test_named_data_sets_stream(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "data"
    data = datasets.Dataset.from_dict({"id": list(range(90)), "body": DOCUMENTS})
    if kind == "folder of files":
        folder.mkdir()
        data.to_parquet(folder / "train.parquet")
    elif kind == "saved":
        data.save_to_disk(folder)
    else:
        datasets.DatasetDict({"train": data, "validation": data.select(range(4))}).save_to_disk(folder)
    request = DataRequest(dataset_name=str(folder), text_column="body", streaming=True, block_size=16)
    found = open_data(request).samples(TOKENIZER)
    if kind == "saved with splits":
        assert tokens(found.train) == packed(DOCUMENTS, 16)
        assert tokens(found.validation) == packed(DOCUMENTS[:4], 16)
    else:
        train = [text for number, text in enumerate(DOCUMENTS) if not held_out(number, 0.05, 0)]
        assert tokens(found.train) == packed(train, 16)


def test_text_files_stream_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PIECE_CHARACTERS", 60)
    paths = []
    for number in range(4):
        paths.append(str(tmp_path / f"{number}.txt"))
        Path(paths[-1]).write_text("".join(DOCUMENTS[number * 20 : number * 20 + 20]))
    request = DataRequest(train_file=tuple(paths), streaming=True, validation_split=0.25, block_size=8)
    found = open_data(request).samples(TOKENIZER)
    (held,) = [number for number in range(4) if held_out(number, 0.25, 0)]
    whole = [Path(path).read_text() for path in paths]
    assert tokens(found.validation) == packed([whole[held]], 8)
    assert tokens(found.train) == packed(whole[:held] + whole[held + 1 :], 8)
    assert found.train.counts is not None and found.train.counts.documents == 3


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([{"txet": "a"}], {}, "has no column 'text'; did you mean 'txet'"),
        ([{"text": 5}], {}, "column 'text' holds int64, not text"),
        ([{"text": "a word"}] * 3, {}, "3 documents are too few to hold out 0.05.*Leave streaming out"),
        ([{"text": " "}] * 60, {}, r"training data: has 0 tokens.*Read: 57 documents \(57 blank"),
    ],
)
def test_streams_that_cannot_be_used(
    tmp_path: Path, rows: list[dict[str, Any]], arguments: dict[str, Any], message: str
) -> None:
    request = DataRequest(train_file=jsonl(tmp_path / "a.jsonl", rows), streaming=True, block_size=4, **arguments)
    if len(rows) == 3:  # held out is then one of 20, and here none of 3
        request = DataRequest(
            train_file=request.train_file,
            streaming=True,
            seed=next(seed for seed in range(9) if not any(held_out(number, 0.05, seed) for number in range(3))),
        )
    with pytest.raises(DataError, match=message):
        open_data(request).samples(TOKENIZER)


def test_a_stream_that_breaks_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a word"}\n' * 50 + "no json\n")
    with pytest.raises(DataError, match=r"^train_file: cannot be loaded"):
        open_data(DataRequest(train_file=str(path), streaming=True)).samples(TOKENIZER)
    assert not cache_folder().exists() or list(cache_folder().iterdir()) == []
