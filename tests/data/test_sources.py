from __future__ import annotations

import itertools
import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import datasets
import pytest

from morphing_trainer.data.sources import cut, hold_out, load_texts
from morphing_trainer.errors import DataError

DOCUMENTS = [f"Document {number}, with words.\nAnd a second line.\n" for number in range(40)]


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def table(path: Path, column: str = "text", rows: list[Any] | None = None) -> str:
    """A file of the kind that its suffix says."""
    rows = DOCUMENTS if rows is None else rows
    data = datasets.Dataset.from_dict({"id": list(range(len(rows))), column: rows})
    if path.suffix in (".jsonl", ".json"):
        return write(path, "".join(json.dumps(row) + "\n" for row in data))
    {".csv": data.to_csv, ".parquet": data.to_parquet}[path.suffix](str(path))
    return str(path)


def both(splits: Any) -> list[str]:
    assert splits.train.column_names == splits.validation.column_names == ["text"]
    return [*splits.train["text"], *splits.validation["text"]]


# --- the default


def test_the_default_is_pythons_language_reference() -> None:
    splits, again = load_texts(), load_texts()
    assert sorted(both(splits)) == sorted(topics.values())
    train, validation = list(splits.train["text"]), list(splits.validation["text"])
    in_order = [topics[name] for name in sorted(topics)]
    assert [text for text in in_order if text in set(train)] == train
    picked = [in_order.index(text) for text in validation]
    assert {later - earlier for earlier, later in itertools.pairwise(picked)} == {20}
    share = sum(map(len, validation)) / sum(map(len, in_order))
    assert 0.045 < share < 0.055
    assert list(again.train["text"]) == train
    assert list(again.validation["text"]) == validation


def test_the_default_holds_out_the_fraction_asked_for() -> None:
    splits = load_texts(validation_split=0.25)
    assert 18 <= len(splits.validation) <= 20


# --- files


@pytest.mark.parametrize("suffix", [".txt", ".md", ".TXT"])
def test_one_text_file_is_cut_at_a_newline(tmp_path: Path, suffix: str) -> None:
    text = "".join(DOCUMENTS)
    splits = load_texts(train_file=write(tmp_path / f"a{suffix}", text), validation_split=0.1)
    train, validation = both(splits)
    assert train + validation == text
    assert train.endswith("\n")
    assert 0.1 <= len(validation) / len(text) < 0.13


def test_text_files_are_one_document_each(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{number}.txt", text) for number, text in enumerate(DOCUMENTS)]
    splits = load_texts(train_file=files[:3], validation_file=files[3])
    assert list(splits.train["text"]) == DOCUMENTS[:3]
    assert list(splits.validation["text"]) == [DOCUMENTS[3]]
    held_out = load_texts(train_file=files)
    assert len(held_out.validation) == 2
    assert sorted(both(held_out)) == sorted(DOCUMENTS)


def test_text_is_read_as_utf8_with_or_without_a_mark_and_with_any_line_ends(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.txt", "Ünï\n漢字")
    marked = write(tmp_path / "b.txt", b"\xef\xbb\xbf" + "Ünï\r\n漢字".encode())
    assert both(load_texts(train_file=plain, validation_file=marked)) == ["Ünï\n漢字"] * 2


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_tables_are_read(tmp_path: Path, suffix: str) -> None:
    file = table(tmp_path / f"a{suffix}", column="body")
    held_out = load_texts(train_file=file, text_column="body", validation_split=0.1, seed=1)
    assert len(held_out.validation) == 4
    assert sorted(both(held_out)) == sorted(DOCUMENTS)
    given = load_texts(train_file=file, validation_file=file, text_column="body")
    assert both(given) == DOCUMENTS * 2


def test_a_table_without_a_cache_of_its_own_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert len(both(load_texts(train_file=table(path)))) == 40
    assert len(both(load_texts(train_file=table(path, rows=DOCUMENTS[:30])))) == 30


# --- what is held out


def test_what_is_held_out_is_decided_by_the_seed_alone() -> None:
    data = datasets.Dataset.from_dict({"text": DOCUMENTS})
    first, again, other = (list(hold_out(data, 0.2, seed, "x").validation["text"]) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == len(other) == 8
    assert first == sorted(first, key=DOCUMENTS.index)


def test_with_too_few_documents_the_end_of_each_is_held_out() -> None:
    data = datasets.Dataset.from_dict({"text": ["a\n" * 100, None, "", "b\n" * 100]})
    splits = hold_out(data, 0.05, 0, "x")
    assert list(splits.train["text"]) == ["a\n" * 95, "", "", "b\n" * 95]
    assert list(splits.validation["text"]) == ["a\n" * 5, "", "", "b\n" * 5]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("aaaa\nbbbb\ncccc", ("aaaa\n", "bbbb\ncccc")),
        ("a\n" + "b " * 50, ("a\n" + "b " * 34, "b " * 16)),  # that newline is too far from the end
        ("x" * 100, ("x" * 70, "x" * 30)),
        ("", ("", "")),
    ],
)
def test_cutting_prefers_a_newline_then_a_space(text: str, parts: tuple[str, str]) -> None:
    assert cut(text, 0.3) == parts


# --- named and saved data sets


def test_a_saved_data_set_is_read(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({"text": DOCUMENTS, "id": list(range(40))})
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "valid": data.select(range(2))}).save_to_disk(tmp_path / "two")
    assert sorted(both(load_texts(dataset_name=str(tmp_path / "one")))) == sorted(DOCUMENTS)
    assert both(load_texts(dataset_name=str(tmp_path / "two"))) == DOCUMENTS + DOCUMENTS[:2]


def test_a_folder_of_data_files_is_read(tmp_path: Path) -> None:
    table(tmp_path / "train.jsonl")
    table(tmp_path / "validation.jsonl", rows=DOCUMENTS[:3])
    assert both(load_texts(dataset_name=str(tmp_path))) == DOCUMENTS + DOCUMENTS[:3]


def test_a_test_split_is_not_used_for_validation(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({"text": DOCUMENTS})
    datasets.DatasetDict({"train": data, "test": data.select(range(2))}).save_to_disk(tmp_path)
    assert sorted(both(load_texts(dataset_name=str(tmp_path)))) == sorted(DOCUMENTS)


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset_name": "a/b", "train_file": "c.txt"}, "dataset_name 'a/b' and train_file 'c.txt': both given"),
        ({"validation_file": "c.txt"}, "validation_file 'c.txt': needs a train_file"),
        ({"dataset_name": "a/b", "validation_file": "c.txt"}, "validation_file 'c.txt': needs a train_file"),
        ({"dataset_config": "en"}, "dataset_config 'en': needs a dataset_name"),
        ({"validation_split": 0}, "validation_split: must be above 0 and below 1, is 0"),
        ({"validation_split": 1.0}, "validation_split: must be"),
        ({"validation_split": float("nan")}, "validation_split: must be"),
        ({"train_file": []}, "train_file: is an empty list"),
        ({"train_file": "/no/such/file.txt"}, r"train_file '/no/such/file.txt': does not exist\. Check the path"),
        ({"dataset_name": "/no/such/folder"}, "dataset_name '/no/such/folder': there is no such folder"),
        ({"dataset_name": "./folder"}, "there is no such folder"),
    ],
)
def test_arguments_that_cannot_work(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_texts(**arguments)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", r"a\.txt': is empty"),
        ("a.txt", " \n ", r"a\.txt': is empty"),
        ("a.txt", "x", "too little text to hold out"),
        ("a.txt", "Grüße".encode("latin-1"), r"a\.txt': is not UTF-8 text \(.*0xfc in position 2.*Convert"),
        ("a.jsonl", "", "is empty"),
        ("a.csv", "", "is empty"),
        ("a.parquet", b"", "is empty"),
        ("a.csv", "text\n", r"no rows can be read from it as \.csv \(.*\)\. Correct"),
        ("a.jsonl", '{"text": "a"}\n{"text": ', r"no rows can be read from it as \.jsonl \(.*\)\. Correct"),
        ("a.json", "no json", r"no rows can be read from it as \.json "),
        ("a.parquet", b"no parquet", r"no rows can be read from it as \.parquet "),
        ("a.jsonl", '{"txet": "a", "id": 1}', "has no column 'text'; did you mean 'txet'.*its columns: txet, id"),
        ("a.jsonl", '{"text": 5}', "column 'text' holds int64, not text"),
        ("a.jsonl", '{"text": ["a"]}', "column 'text' holds .*, not text"),
        ("a.jsonl", '{"text": ""}\n{"text": " "}', "column 'text' is empty in all 2 rows"),
        ("a.docx", "x", r"cannot read \.docx.*Give one of \.txt, \.md, \.jsonl, \.json, \.csv, \.parquet"),
        ("a", "x", "cannot read files without a suffix"),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_files_that_cannot_be_used(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_texts(train_file=write(tmp_path / name, content))
    assert str(caught.value).startswith("train_file")


def test_a_bad_validation_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^validation_file '.*b\.txt': does not exist"):
        load_texts(train_file=write(tmp_path / "a.txt", "text"), validation_file=str(tmp_path / "b.txt"))


def test_folders_and_files_are_not_taken_for_each_other(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder.*set dataset_name to the folder"):
        load_texts(train_file=str(tmp_path))
    with pytest.raises(DataError, match=r"is a file\. Set train_file"):
        load_texts(dataset_name=write(tmp_path / "a.txt", "text"))


def test_files_of_several_kinds_are_refused(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.txt", "text"), table(tmp_path / "b.jsonl")]
    with pytest.raises(DataError, match=r"mixes \.jsonl, \.txt files"):
        load_texts(train_file=files)


def test_folders_that_hold_no_usable_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset_name .* cannot be loaded \(.*\)"):
        load_texts(dataset_name=str(tmp_path))
    data = datasets.Dataset.from_dict({"text": DOCUMENTS})
    datasets.DatasetDict({"test": data}).save_to_disk(tmp_path / "no_train")
    with pytest.raises(DataError, match="has no split 'train', only test"):
        load_texts(dataset_name=str(tmp_path / "no_train"))
    data.save_to_disk(tmp_path / "damaged")
    (tmp_path / "damaged" / "state.json").write_text("{")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_texts(dataset_name=str(tmp_path / "damaged"))
    datasets.Dataset.from_dict({"text": []}).save_to_disk(tmp_path / "empty")
    with pytest.raises(DataError, match="cannot be loaded"):  # `datasets` reads back no data set that it saved empty
        load_texts(dataset_name=str(tmp_path / "empty"))
