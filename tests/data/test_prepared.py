"""Prepared folders: whole or not there, the same samples anywhere, and no use with what they were not made for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from morphing_trainer.data import prepared
from morphing_trainer.data.opening import Text, open_data
from morphing_trainer.data.prepared import Prepared, load_prepared, write_prepared
from morphing_trainer.data.request import DataRequest
from morphing_trainer.data.samples import Continuations
from morphing_trainer.data.tokenizer import train_tokenizer
from morphing_trainer.errors import DataError

DOCUMENTS = [f"Document {number}, with words. And a second sentence.\n" for number in range(60)]
TOKENIZER = train_tokenizer(DOCUMENTS, 300)


def request(tmp_path: Path, **changes: Any) -> DataRequest:
    path = tmp_path / "a.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return DataRequest(train_file=str(path), **{"block_size": 16, **changes})


def make(tmp_path: Path, **changes: Any) -> Prepared:
    asked = request(tmp_path, **changes)
    data = open_data(asked)
    assert isinstance(data, Text)
    return write_prepared(tmp_path / "ready", data.folders(TOKENIZER), TOKENIZER, asked)


def reopen(folder: Path, **changes: Any) -> Any:
    return open_data(DataRequest(dataset_name=str(folder), **changes))


@pytest.mark.parametrize("mode", ["packing", "continuation"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_prepared_folder_gives_the_samples_it_was_made_of(tmp_path: Path, mode: Any, streaming: bool) -> None:
    asked = request(tmp_path, sample_mode=mode, streaming=streaming)
    expected = open_data(asked).samples(TOKENIZER)
    folder = make(tmp_path, sample_mode=mode, streaming=streaming).folder
    moved = tmp_path / "elsewhere" / "data"
    shutil.copytree(folder, moved)
    shutil.rmtree(folder)
    data = reopen(moved)
    assert data.block_size == 16
    tokenizer = data.tokenizer(None, 9999)
    assert tokenizer(DOCUMENTS[0])["input_ids"] == TOKENIZER(DOCUMENTS[0])["input_ids"]
    found = data.samples(tokenizer, 16)
    for split in ("train", "validation"):
        mine, theirs = getattr(found, split), getattr(expected, split)
        assert type(mine) is type(theirs)
        assert np.array_equal(mine.tokens, theirs.tokens)
        assert str(mine.tokens.filename).startswith(str(moved))
        assert mine.fingerprint == theirs.fingerprint
        assert mine.counts == theirs.counts
        if isinstance(mine, Continuations):
            assert np.array_equal(mine.text_starts, theirs.text_starts)
            assert np.array_equal(mine.prompts, theirs.prompts)
    assert data.tokenizer_folder == moved / "tokenizer"
    assert data.meta["mode"] == mode
    assert data.meta["request"]["streaming"] is streaming


def test_the_same_tokenizer_may_be_named(tmp_path: Path) -> None:
    data = reopen(make(tmp_path).folder)
    TOKENIZER.save_pretrained(tmp_path / "mine")
    assert len(data.samples(data.tokenizer(str(tmp_path / "mine"), 1)).train)


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    data = reopen(make(tmp_path).folder)
    other = train_tokenizer(DOCUMENTS[:5], 280)
    other.save_pretrained(tmp_path / "other")
    message = r"prepared folder '.*ready': was made with another tokenizer than .*Prepare the data again with this"
    with pytest.raises(DataError, match=message):
        data.tokenizer(str(tmp_path / "other"), 280)
    with pytest.raises(DataError, match=message):
        data.samples(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 32}, r"block_size: is 32, but prepared folder .* was made with 16"),
        ({"sample_mode": "continuation"}, "sample_mode: is continuation, but prepared folder .* was made with packing"),
        ({"streaming": True}, "streaming: has no effect on dataset_name .* a prepared folder"),
        ({"max_documents": 3}, "max_documents: has no effect"),
        ({"dataset_config": "en"}, "dataset_config: has no effect"),
        ({"train_split": "test"}, "train_split: has no effect"),
        ({"train_file": "a.txt"}, "both given"),
    ],
)
def test_what_a_folder_was_not_made_with_cannot_be_asked_of_it(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = make(tmp_path).folder
    with pytest.raises(DataError, match=message):
        reopen(folder, **changes)


def test_the_folders_own_settings_may_be_repeated(tmp_path: Path) -> None:
    assert reopen(make(tmp_path).folder, block_size=16, sample_mode="packing").block_size == 16


def test_samples_longer_than_the_model_takes_are_refused(tmp_path: Path) -> None:
    data = reopen(make(tmp_path).folder)
    with pytest.raises(DataError, match="block_size: is 16, but the model takes at most 15 tokens"):
        data.samples(TOKENIZER, 15)


def damage(folder: Path, how: str) -> None:
    tokens, meta, inner = folder / "train/tokens.bin", folder / "meta.json", folder / "validation/meta.json"
    match how:
        case "shorter":
            tokens.write_bytes(tokens.read_bytes()[:-2])
        case "longer":
            tokens.write_bytes(tokens.read_bytes() + b"ab")
        case "missing":
            tokens.unlink()
        case "no split":
            shutil.rmtree(folder / "validation")
        case "offsets":
            path = folder / "train/offsets.bin"
            path.write_bytes(path.read_bytes()[:-8] + (10**6).to_bytes(8, "little"))
        case "a flipped bit":
            content = bytearray(tokens.read_bytes())
            content[10] ^= 1
            tokens.write_bytes(content)
        case "meta lost":
            meta.unlink()
        case "empty meta":
            meta.write_text("{}")
        case "broken meta":
            meta.write_text('{"format":')
        case "broken inner meta":
            inner.write_text("[]")
        case "inner meta without counts":
            inner.write_text(json.dumps({"arrays": {}, "mode": "continuation"}))
        case "strange type":
            content = json.loads(inner.read_text())
            content["arrays"]["tokens"]["dtype"] = "O"
            inner.write_text(json.dumps(content))
        case "newer":
            meta.write_text(json.dumps(json.loads(meta.read_text()) | {"version": 99}))
        case "other tokenizer":
            train_tokenizer(DOCUMENTS[:3], 270).save_pretrained(folder / "tokenizer")
        case _:
            raise AssertionError(how)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("shorter", r"training data: .*tokens\.bin has \d+ bytes, but meta\.json says \d+: the folder is damaged"),
        ("longer", "the folder is damaged. Copy it again"),
        ("missing", r"tokens\.bin is missing"),
        ("no split", "validation data: .*cannot be read"),
        ("offsets", "training data: .*is damaged"),
        ("a flipped bit", r"train/tokens\.bin is not what was written: the folder is damaged"),
        ("meta lost", r"meta\.json cannot be read"),
        ("empty meta", "is not that of a prepared folder"),
        ("broken meta", r"meta\.json cannot be read"),
        ("broken inner meta", r"validation data: .*meta\.json is damaged"),
        ("inner meta without counts", r"validation data: .*meta\.json is damaged"),
        ("strange type", r"meta\.json is damaged"),
        ("newer", "has format version 99, this library reads"),
        ("other tokenizer", "its tokenizer is not the one that its samples were made with"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, how: str, message: str) -> None:
    folder = make(tmp_path, sample_mode="continuation").folder
    damage(folder, how)
    with pytest.raises(DataError, match=message) as caught:
        reopen(folder).tokenizer(None, 1)
    assert str(caught.value).startswith(f"prepared folder {str(folder)!r}")


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    first = make(tmp_path)
    before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=r"holds prepared data already.*--overwrite"):
        make(tmp_path)
    assert {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()} == before
    asked = request(tmp_path, block_size=8)
    data = open_data(asked)
    assert isinstance(data, Text)
    again = write_prepared(first.folder, data.folders(TOKENIZER), TOKENIZER, asked, overwrite=True)
    assert again.block_size == load_prepared(first.folder).block_size == 8
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["cache", "ready"]


def test_other_files_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "ready").mkdir()
    (tmp_path / "ready" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"holds other files. Give the name of a new folder"):
        prepared.check_target(tmp_path / "ready", overwrite=True)
    with pytest.raises(DataError, match="is a file"):
        prepared.check_target(tmp_path / "ready" / "thesis.txt", overwrite=True)
    (tmp_path / "empty").mkdir()
    prepared.check_target(tmp_path / "empty", overwrite=False)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_was_interrupted_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], there: bool
) -> None:
    asked = request(tmp_path)
    data = open_data(asked)
    assert isinstance(data, Text)
    folders, target = data.folders(TOKENIZER), tmp_path / "ready"
    if there:
        make(tmp_path)
    before = sorted(str(path) for path in tmp_path.rglob("*"))

    def fail(*_: Any) -> None:
        raise error("no space left")

    monkeypatch.setattr(prepared, "write_meta", fail)
    with pytest.raises(error):
        write_prepared(target, folders, TOKENIZER, replace(asked, block_size=16), overwrite=True)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_a_run_trains_from_a_prepared_folder_without_a_network(tmp_path: Path) -> None:
    """In a process that can open no connection, with an empty home and cache, after everything else is gone."""
    folder = make(tmp_path, sample_mode="continuation").folder
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "a.jsonl").unlink()
    script = """
import socket, sys
class NoNetwork(socket.socket):
    def connect(self, address):
        if self.family != socket.AF_UNIX:
            raise AssertionError(f"a connection to {address}")
        return super().connect(address)
socket.socket = NoNetwork
from morphing_trainer.cli.train import main
sys.exit(main(sys.argv[1:]))
"""
    small = [
        "--n_layer",
        "1",
        "--n_embd",
        "16",
        "--n_head",
        "2",
        "--max_steps",
        "2",
        "--use_cpu",
        "--report_to",
        "none",
    ]
    small += ["--per_device_train_batch_size", "2", "--eval_strategy", "no", "--save_strategy", "no"]
    arguments = ["--dataset_name", str(folder), "--output_dir", str(tmp_path / "run"), *small]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(__file__).parents[2])}
    finished = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["n_positions"] == 16
