from __future__ import annotations

import itertools
import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import datasets
import numpy as np
import pytest

from morphing_trainer.data import files as reading
from morphing_trainer.data import sources
from morphing_trainer.data.holding_out import cut, document_rows
from morphing_trainer.data.holding_out import hold_out as hold_out_pair
from morphing_trainer.data.packing import Packer
from morphing_trainer.data.request import DataRequest
from morphing_trainer.data.sources import TextSplits
from morphing_trainer.data.tokenizer import train_tokenizer
from morphing_trainer.errors import DataError

DOCUMENTS = [f"Document {number}, with words.\nAnd a second line.\n" for number in range(40)]


def load_texts(**arguments: Any) -> TextSplits:
    lists = {name: tuple(value) for name, value in arguments.items() if isinstance(value, list)}
    return sources.load_texts(DataRequest(**arguments | lists))


def hold_out(*arguments: Any) -> TextSplits:
    return TextSplits(*hold_out_pair(*arguments))


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
        ({"train_split": "test"}, "train_split 'test': needs a dataset_name"),
        ({"streaming": True}, "streaming: needs a dataset_name or a train_file"),
        ({"max_documents": 0}, "max_documents: must be at least 1, is 0"),
        ({"max_documents": 1}, "max_documents: is 1; the default data needs 2"),
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
        ("a.json", "no json", r"a\.json': begins with neither an object nor a list"),
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
    with pytest.raises(DataError, match=r"has no split 'train'.*set train_split to one of its splits: test"):
        load_texts(dataset_name=str(tmp_path / "no_train"))
    data.save_to_disk(tmp_path / "damaged")
    (tmp_path / "damaged" / "state.json").write_text("{")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_texts(dataset_name=str(tmp_path / "damaged"))
    datasets.Dataset.from_dict({"text": []}).save_to_disk(tmp_path / "empty")
    with pytest.raises(DataError, match="cannot be loaded"):  # `datasets` reads back no data set that it saved empty
        load_texts(dataset_name=str(tmp_path / "empty"))


# --- columns


def columns_of(tmp_path: Path, **columns: list[Any]) -> Any:
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "data")
    return load_texts(dataset_name=str(tmp_path / "data")).train


def test_title_prompt_and_truth_are_kept_and_the_rest_is_not(tmp_path: Path) -> None:
    rows = {name: [f"{name} {row}" for row in range(30)] for name in ("text", "title", "prompt", "truth", "url")}
    train = columns_of(tmp_path, **rows)
    assert sorted(train.column_names) == ["prompt", "text", "title", "truth"]
    assert train[0] == {name: f"{name} 0" for name in train.column_names}


def test_a_prompt_without_a_truth_and_a_title_that_is_no_text_are_left_out(tmp_path: Path) -> None:
    train = columns_of(tmp_path, text=DOCUMENTS, title=list(range(40)), prompt=DOCUMENTS)
    assert train.column_names == ["text"]


def test_prompt_and_truth_need_no_text(tmp_path: Path) -> None:
    train = columns_of(tmp_path, prompt=DOCUMENTS, truth=DOCUMENTS)
    assert sorted(train.column_names) == ["prompt", "truth"]


def test_few_prompts_are_held_out_whole(tmp_path: Path) -> None:
    file = table(tmp_path / "a.jsonl", column="truth", rows=["1", "2", "3"])
    rows = [json.loads(line) | {"prompt": "?"} for line in Path(file).read_text().splitlines()]
    write(Path(file), "".join(json.dumps(row) + "\n" for row in rows))
    splits = load_texts(train_file=file)
    assert len(splits.validation) == 1
    assert sorted([*splits.train["truth"], *splits.validation["truth"]]) == ["1", "2", "3"]
    write(Path(file), json.dumps(rows[0]))
    with pytest.raises(DataError, match="too little text to hold out"):
        load_texts(train_file=file)


def test_blank_truths_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'truth' is empty in all 40 rows"):
        columns_of(tmp_path, prompt=DOCUMENTS, truth=[""] * 40)


def test_titles_stay_with_both_parts_of_a_document() -> None:
    data = datasets.Dataset.from_dict({"text": ["a\n" * 100], "title": ["A"]})
    splits = hold_out(data, 0.05, 0, "x")
    assert splits.train[0]["title"] == splits.validation[0]["title"] == "A"


# --- splits and limits


@pytest.fixture
def three_splits(tmp_path: Path) -> str:
    data = datasets.Dataset.from_dict({"text": DOCUMENTS})
    parts = {"train": data, "extra": data.select(range(30)), "validation": data.select(range(3))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "named")
    return str(tmp_path / "named")


def test_the_split_to_train_on_is_chosen_by_name(three_splits: str) -> None:
    splits = load_texts(dataset_name=three_splits, train_split="extra")
    assert list(splits.train["text"]) == DOCUMENTS[:30]
    assert list(splits.validation["text"]) == DOCUMENTS[:3]


def test_training_on_the_validation_split_holds_out_a_part_of_it(three_splits: str) -> None:
    splits = load_texts(dataset_name=three_splits, train_split="validation", validation_split=0.4)
    assert sorted(both(splits)) == sorted(DOCUMENTS[:3])
    assert len(splits.validation) == 1


def test_an_unknown_split_is_refused_with_those_there_are(three_splits: str) -> None:
    with pytest.raises(DataError, match=r"has no split 'trian'; did you mean 'train'.*: train, extra, validation\)"):
        load_texts(dataset_name=three_splits, train_split="trian")


def test_only_so_many_documents_are_read(three_splits: str, tmp_path: Path) -> None:
    splits = load_texts(dataset_name=three_splits, max_documents=2)
    assert list(splits.train["text"]) == list(splits.validation["text"]) == DOCUMENTS[:2]
    file = table(tmp_path / "a.jsonl")
    assert sorted(both(load_texts(train_file=file, max_documents=25))) == sorted(DOCUMENTS[:25])
    assert len(both(load_texts(max_documents=10))) == 10


# --- files that are too large to be held in memory


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SMALL_BYTES", 100)
    monkeypatch.setattr(reading, "PIECE_CHARACTERS", 60)


@pytest.mark.usefixtures("small_pieces")
def test_a_large_file_is_read_in_pieces_that_give_the_same_tokens(tmp_path: Path) -> None:
    whole = "".join(DOCUMENTS) + "  The end, without a newline."
    file = write(tmp_path / "a.txt", b"\xef\xbb\xbf" + whole.replace("\n", "\r\n").encode())
    rows = reading.read_files("train_file", [file, write(tmp_path / "b.txt", "A short one.")], "text")
    assert len(rows) > 10
    assert "".join(rows["text"][:-1]) == whole
    assert all(len(text) <= 3 * 60 for text in rows["text"])
    assert all(text.endswith("\n") for text in rows["text"][:-2])
    assert list(rows["before"]) == [None, *rows["text"][:-2], None]
    assert list(rows["continues"]) == [True] * (len(rows) - 2) + [False, False]
    assert document_rows(rows).tolist() == [0, len(rows) - 1, len(rows)]
    packer = Packer(train_tokenizer(DOCUMENTS, 300))
    found = packer(rows[:])
    expected = packer({"text": [whole, "A short one."]})
    assert np.concatenate(found["input_ids"]).tolist() == np.concatenate(expected["input_ids"]).tolist()
    assert sum(found["closes"]) == 2


@pytest.mark.usefixtures("small_pieces")
def test_the_end_of_a_large_file_is_held_out(tmp_path: Path) -> None:
    whole = "".join(DOCUMENTS)
    splits = load_texts(train_file=write(tmp_path / "a.txt", whole), validation_split=0.2)
    train, validation = "".join(splits.train["text"]), "".join(splits.validation["text"])
    assert train + validation == whole
    assert train.endswith("\n")
    assert 0.15 < len(validation) / len(whole) < 0.25
    assert len(splits.train) > 5 and len(splits.validation) > 1
    for part in (splits.train, splits.validation):
        assert list(part["continues"]) == [True] * (len(part) - 1) + [False]
        assert [before is None for before in part["before"]] == [True] + [False] * (len(part) - 1)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_document_can_be_cut_anywhere(tmp_path: Path, share: float) -> None:
    whole = "".join(DOCUMENTS)
    splits = load_texts(train_file=write(tmp_path / "a.txt", whole), validation_split=share)
    assert "".join(splits.train["text"]) + "".join(splits.validation["text"]) == whole
    assert splits.train["text"][-1].strip()
    assert splits.validation["text"][0]


@pytest.mark.usefixtures("small_pieces")
def test_many_large_files_are_held_out_whole(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{number}.txt", text * 5) for number, text in enumerate(DOCUMENTS[:10])]
    splits = load_texts(train_file=files, validation_split=0.2)
    assert len(document_rows(splits.train)) - 1 == 8
    assert len(document_rows(splits.validation)) - 1 == 2
    assert {"".join(splits.validation["text"][:2])} < {text * 5 for text in DOCUMENTS} or len(splits.validation) > 2
    limited = load_texts(train_file=files, max_documents=5, validation_split=0.2)
    assert len(document_rows(limited.train)) - 1 == 4


@pytest.mark.usefixtures("small_pieces")
def test_a_large_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    first = load_texts(train_file=write(path, "".join(DOCUMENTS)))
    again = load_texts(train_file=str(path))
    assert again.train._fingerprint == first.train._fingerprint
    other = load_texts(train_file=write(path, "".join(DOCUMENTS[1:])))
    assert other.train._fingerprint != first.train._fingerprint
    assert "".join(other.train["text"]).startswith(DOCUMENTS[1])


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(
    ("content", "message"),
    [(b"word\n" * 50 + b"\xfc", r"a\.txt': is not UTF-8 text"), (b" \n" * 200, r"a\.txt': is empty")],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_large_file_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_texts(train_file=write(tmp_path / "a.txt", content))
