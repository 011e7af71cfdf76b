"""Where the text comes from: files, a named or saved data set, or the language reference inside every CPython."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from morphing_trainer.data.hub import first_line, hub_problem, looks_local
from morphing_trainer.errors import DataError, suggest

TEXT_SUFFIXES = (".txt", ".md")
TABLE_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
VALIDATION_NAMES = ("validation", "valid", "val", "dev", "eval")


@dataclass(frozen=True)
class TextSplits:
    """Documents to train on and to evaluate on, each a data set with the one column "text"."""

    train: datasets.Dataset
    validation: datasets.Dataset


def load_texts(
    dataset_name: str | None = None,
    dataset_config: str | None = None,
    train_file: str | Sequence[str] | None = None,
    validation_file: str | Sequence[str] | None = None,
    text_column: str = "text",
    validation_split: float = 0.05,
    seed: int = 0,
) -> TextSplits:
    """The text that the data arguments ask for; with none given, the Python language reference.

    Args:
        dataset_name: Hub id, or local folder (of data files, or written by `save_to_disk`).
        dataset_config: configuration of that data set.
        train_file: one or several files: .txt and .md (each one document), .jsonl, .json, .csv, .parquet.
        validation_file: the same, for evaluation.
        text_column: the column that holds the text, where there are columns.
        validation_split: fraction of the documents held out where there is no validation set; with fewer than
            1 / validation_split documents, that last part of each document.
        seed: decides which documents are held out.

    Raises:
        DataError: if arguments contradict each other, or the data is missing, unreadable or empty.
    """
    if dataset_name is not None and train_file is not None:
        raise DataError(f"dataset_name {dataset_name!r} and train_file {train_file!r}: both given. Leave one out.")
    if validation_file is not None and train_file is None:
        raise DataError(f"validation_file {validation_file!r}: needs a train_file. Give one, or leave it out.")
    if dataset_config is not None and dataset_name is None:
        raise DataError(f"dataset_config {dataset_config!r}: needs a dataset_name. Give one, or leave it out.")
    if not 0 < validation_split < 1:
        raise DataError(f"validation_split: must be above 0 and below 1, is {validation_split}.")

    if train_file is not None:
        train = _read_files("train_file", train_file, text_column)
        if validation_file is not None:
            return TextSplits(train, _read_files("validation_file", validation_file, text_column))
        return hold_out(train, validation_split, seed, "train_file")
    if dataset_name is not None:
        where = f"dataset_name {dataset_name!r}"
        named = _load_named(where, dataset_name, dataset_config)
        if "train" not in named:
            raise DataError(f"{where}: has no split 'train', only {', '.join(map(str, named))}. Use another data set.")
        train = _text_only(named["train"], text_column, where)
        for name in VALIDATION_NAMES:
            if name in named:
                return TextSplits(train, _text_only(named[name], text_column, f"{where}, split {name!r}"))
        return hold_out(train, validation_split, seed, where)
    return _language_reference(validation_split)


def _language_reference(fraction: float) -> TextSplits:
    """The topics of Python's `help()`, sorted by name; every n-th is for validation.

    Topics differ much in length: of the n ways to take every n-th, the one nearest to `fraction` of the text is taken.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:  # some distributions package it separately
        raise DataError(
            "default data: this Python comes without `pydoc_data`. Give train_file or dataset_name."
        ) from error
    texts = datasets.Dataset.from_dict({"text": [topics[name] for name in sorted(topics)]})
    sizes = np.array([len(text) for text in texts["text"]])
    every = min(max(2, round(1 / fraction)), len(sizes))
    first = min(range(every), key=lambda start: abs(int(sizes[start::every].sum()) - fraction * int(sizes.sum())))
    return _divide(texts, np.arange(len(sizes)) % every == first)


def hold_out(texts: datasets.Dataset, fraction: float, seed: int, where: str) -> TextSplits:
    """Split off `fraction` of the documents, picked by `seed`, or the last part of each if they are too few for that.

    Raises:
        DataError: if there is too little text to split.
    """
    count = int(len(texts) * fraction)
    if count >= 1:
        held = np.random.default_rng(seed).choice(len(texts), size=count, replace=False)
        return _divide(texts, np.isin(np.arange(len(texts)), held))
    heads, tails = zip(*(cut(text or "", fraction) for text in texts["text"]), strict=True)
    train, validation = (datasets.Dataset.from_dict({"text": list(parts)}) for parts in (heads, tails))
    if not (_has_text(train) and _has_text(validation)):
        raise DataError(f"{where}: has too little text to hold out a part of it. Give more, or a validation_file.")
    return TextSplits(train, validation)


def _divide(texts: datasets.Dataset, held: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> TextSplits:
    """Split by a mask, (documents,) bool, keeping the order."""
    return TextSplits(texts.select(np.flatnonzero(~held)), texts.select(np.flatnonzero(held)))


def cut(text: str, fraction: float) -> tuple[str, str]:
    """`text` in two, the second about `fraction` of it: at a newline, else a space, else anywhere."""
    end = int(len(text) * (1 - fraction))
    for separator in ("\n", " "):
        at = text.rfind(separator, 0, end) + 1
        if at > end // 2:
            return text[:at], text[at:]
    return text[:end], text[end:]


def _read_files(argument: str, files: str | Sequence[str], text_column: str) -> datasets.Dataset:
    paths = [Path(files)] if isinstance(files, str) else [Path(file) for file in files]
    if not paths:
        raise DataError(f"{argument}: is an empty list. Name a file, or leave it out.")
    for path in paths:
        if path.is_dir():
            raise DataError(
                f"{argument} {str(path)!r}: is a folder. Name a file in it, or set dataset_name to the folder."
            )
        if not path.exists():
            raise DataError(f"{argument} {str(path)!r}: does not exist. Check the path (from {Path.cwd()}).")
    suffixes = {path.suffix.lower() for path in paths}
    if suffixes <= set(TEXT_SUFFIXES):
        return datasets.Dataset.from_dict({"text": [_read_text(f"{argument} {str(path)!r}", path) for path in paths]})
    if len(suffixes) > 1:
        raise DataError(f"{argument}: mixes {', '.join(sorted(suffixes))} files. Give files of one kind.")
    suffix = suffixes.pop()
    where = f"{argument} {', '.join(repr(str(path)) for path in paths)}"
    if suffix not in TABLE_READERS:
        known = ", ".join((*TEXT_SUFFIXES, *TABLE_READERS))
        raise DataError(f"{where}: cannot read {suffix or 'files without a suffix'}. Give one of {known}.")
    if any(path.stat().st_size == 0 for path in paths):
        raise DataError(f"{where}: is empty. Give a file with text.")
    try:
        table = datasets.load_dataset(TABLE_READERS[suffix], data_files=[str(path) for path in paths], split="train")
    except Exception as error:  # the readers raise many types, all of which mean the same here
        reason = first_line(error.__cause__ or error)
        raise DataError(f"{where}: no rows can be read from it as {suffix} ({reason}). Correct it.") from error
    return _text_only(table, text_column, where)


def _read_text(where: str, path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")  # also without the mark that some editors put at the start
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is not UTF-8 text ({first_line(error)}). Convert it to UTF-8.") from error
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({first_line(error)}). Check its permissions.") from error
    if not text.strip():
        raise DataError(f"{where}: is empty. Give a file with text.")
    return text


def _load_named(where: str, name: str, config: str | None) -> datasets.DatasetDict:
    folder = Path(name).expanduser()
    local = looks_local(name)
    if folder.is_file():
        raise DataError(f"{where}: is a file. Set train_file to it instead.")
    if local and not folder.is_dir():
        raise DataError(f"{where}: there is no such folder. Check the path (from {Path.cwd()}), or give a Hub id.")
    if not local and not datasets.config.HF_HUB_OFFLINE and (problem := hub_problem()) is not None:
        raise DataError(
            f"{where}: is no local folder, and the Hub cannot be reached ({problem}). Check the connection, use "
            "train_file, or, if it was downloaded before, set HF_HUB_OFFLINE=1 to use the cached copy."
        )
    saved = any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        loaded = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(str(folder), config)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(
            f"{where}: does not exist on the Hub, or is private or gated, and is no local folder. Check the name; for "
            "a private or gated data set, log in with `hf auth login`."
        ) from error
    except ConnectionError as error:
        raise DataError(
            f"{where}: is not in the local cache, and the Hub cannot be reached ({first_line(error)}). "
            "Check the connection, unset HF_HUB_OFFLINE, or use train_file."
        ) from error
    except Exception as error:  # unknown configurations, damaged files, unsupported formats
        reason = first_line(error.__cause__ or error)
        raise DataError(f"{where}: cannot be loaded ({reason}). Check it, and dataset_config ({config!r}).") from error
    return loaded if isinstance(loaded, datasets.DatasetDict) else datasets.DatasetDict({"train": loaded})


def _text_only(table: datasets.Dataset, column: str, where: str) -> datasets.Dataset:
    """`table` with its text column alone, called "text"."""
    if len(table) == 0:
        raise DataError(f"{where}: is empty. Give data with text.")
    if column not in table.column_names:
        raise DataError(
            f"{where}: has no column {column!r}{suggest(column, table.column_names)} "
            f"(set text_column to one of its columns: {', '.join(table.column_names)})"
        )
    kind = getattr(table.features[column], "dtype", type(table.features[column]).__name__)
    if kind not in ("string", "large_string"):
        raise DataError(f"{where}: column {column!r} holds {kind}, not text. Set text_column to a column with text.")
    table = table.select_columns(column)
    table = table if column == "text" else table.rename_column(column, "text")
    if not _has_text(table):
        raise DataError(f"{where}: column {column!r} is empty in all {len(table)} rows. Give data with text.")
    return table


def _has_text(texts: datasets.Dataset) -> bool:
    return any(text and not text.isspace() for text in texts["text"])
