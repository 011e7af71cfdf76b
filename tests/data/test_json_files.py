"""JSON in a folder of data: what ends pyarrow's reader, and the process with it, is refused before."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from morphing_trainer.data.json_files import CHUNK, MOST_DEPTH, json_fault
from morphing_trainer.data.opening import open_data
from morphing_trainer.data.request import DataRequest
from morphing_trainer.data.sources import load_texts
from morphing_trainer.errors import DataError
from tests.reliability.hostile import UNREADABLE, nothing_runs

ROWS = "".join(json.dumps({"text": f"Document {number}."}) + "\n" for number in range(20)).encode()


def plain(name: str) -> Callable[[Path, bytes], None]:
    def write(folder: Path, content: bytes) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return write


def compressed(folder: Path, content: bytes) -> None:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(content))


def archived(name: str) -> Callable[[Path, bytes], None]:
    def write(folder: Path, content: bytes) -> None:
        with zipfile.ZipFile(folder / "a.zip", "w") as archive:
            archive.writestr("first.jsonl", ROWS)
            archive.writestr(name, content)

    return write


WAYS: dict[str, Callable[[Path, bytes], None]] = {
    "json": plain("a.json"),
    "jsonl": plain("a.jsonl"),
    "ndjson": plain("a.ndjson"),
    "of a split": plain("test/a.jsonl"),
    "compressed": compressed,
    "in an archive": archived("b.jsonl"),
    "in an archive, under another name": archived("b.txt"),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("content", ["deep mappings", "null"])
def test_what_ends_the_reader_is_refused(tmp_path: Path, content: str, way: str, streaming: bool) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    plain("good.jsonl")(folder, ROWS)
    WAYS[way](folder, UNREADABLE[content])
    fault = r"nested deeper|neither an object nor a list"
    with nothing_runs(tmp_path), pytest.raises(DataError, match=rf"dataset_name .*[ab]\.\w+.* ({fault})"):
        open_data(DataRequest(dataset_name=str(folder), block_size=16, streaming=streaming))


@pytest.mark.parametrize("streaming", [False, True])
def test_beside_pictures(tmp_path: Path, streaming: bool) -> None:
    """The reader of pictures reads lines of JSON, too."""
    plain("metadata.jsonl")(tmp_path, UNREADABLE["deep mappings"])
    plain("a.png")(tmp_path, b"")
    with pytest.raises(DataError, match=r"metadata\.jsonl is nested deeper"):
        open_data(DataRequest(dataset_name=str(tmp_path), block_size=16, streaming=streaming))


@pytest.mark.parametrize("way", WAYS)
def test_sound_files_are_read(tmp_path: Path, way: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    WAYS[way](folder, ROWS)
    split = "test" if way == "of a split" else "train"
    texts = load_texts(DataRequest(dataset_name=str(folder), train_split=split))
    assert len(texts.train) + len(texts.validation) in (20, 40)


def test_over_the_border_of_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b" " * (CHUNK - 10) + b"[" * MOST_DEPTH)
    assert json_fault(path) == ""
    path.write_bytes(b" " * (CHUNK - 10) + b"[" * (MOST_DEPTH + 1))
    assert "deeper" in json_fault(path)
    path.write_bytes(b" " * (CHUNK + 10) + b"7")
    assert "neither" in json_fault(path)
