"""Where the text comes from: files, a named or saved data set, or the language reference inside every CPython."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np

from morphing_trainer.data.columns import useful_texts
from morphing_trainer.data.documents import TEXT
from morphing_trainer.data.files import read_files
from morphing_trainer.data.holding_out import divide, first_documents, hold_out
from morphing_trainer.data.named import choose_splits, load_named
from morphing_trainer.data.request import DataRequest
from morphing_trainer.errors import DataError


@dataclass(frozen=True)
class TextSplits:
    """Documents to train on and to evaluate on: data sets with the columns of `documents.COLUMNS`, or some of them."""

    train: datasets.Dataset
    validation: datasets.Dataset


def check_request(request: DataRequest) -> None:
    """Raises DataError if arguments contradict each other, or cannot be."""
    name, train_file, validation_file = request.dataset_name, request.train_file, request.validation_file
    if name is not None and train_file is not None:
        raise DataError(f"dataset_name {name!r} and train_file {_shown(train_file)}: both given. Leave one out.")
    if validation_file is not None and train_file is None:
        raise DataError(f"validation_file {_shown(validation_file)}: needs a train_file. Give one, or leave it out.")
    if name is None:
        if request.dataset_config is not None:
            raise DataError(
                f"dataset_config {request.dataset_config!r}: needs a dataset_name. Give one, or leave it out."
            )
        if request.train_split != "train":
            raise DataError(f"train_split {request.train_split!r}: needs a dataset_name. Give one, or leave it out.")
        if request.streaming and train_file is None:
            raise DataError("streaming: needs a dataset_name or a train_file. Give one, or leave it out.")
    if not 0 < request.validation_split < 1:
        raise DataError(f"validation_split: must be above 0 and below 1, is {request.validation_split}.")
    if request.max_documents is not None and request.max_documents < 1:
        raise DataError(f"max_documents: must be at least 1, is {request.max_documents}.")


def _shown(files: str | Sequence[str]) -> str:
    return repr(files) if isinstance(files, str) else ", ".join(map(repr, files))


def load_texts(request: DataRequest) -> TextSplits:
    """The text that is asked for; with no source given, the Python language reference.

    Where there is no validation set, some of the documents are held out, see `hold_out`.

    Raises:
        DataError: if arguments contradict each other, or the data is missing, unreadable or empty.
    """
    check_request(request)
    validation: datasets.Dataset | None = None
    if request.train_file is not None:
        where = "train_file"
        train = read_files(where, request.train_file, request.text_column)
        if request.validation_file is not None:
            validation = read_files("validation_file", request.validation_file, request.text_column)
    elif request.dataset_name is not None:
        where = f"dataset_name {request.dataset_name!r}"
        named = load_named(where, request.dataset_name, request.dataset_config)
        chosen, held_out = choose_splits(named, request.train_split, where)
        train = useful_texts(named[chosen], request.text_column, where)
        if held_out is not None:
            validation = useful_texts(named[held_out], request.text_column, f"{where}, split {held_out!r}")
    else:
        return _language_reference(request.validation_split, request.max_documents)
    train = first_documents(train, request.max_documents)
    if validation is not None:
        return TextSplits(train, first_documents(validation, request.max_documents))
    return TextSplits(*hold_out(train, request.validation_split, request.seed, where))


def _language_reference(fraction: float, max_documents: int | None) -> TextSplits:
    """The topics of Python's `help()`, sorted by name; every n-th is for validation.

    Topics differ much in length: of the n ways to take every n-th, the one nearest to `fraction` of the text is taken.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:  # some distributions package it separately
        raise DataError(
            "default data: this Python comes without `pydoc_data`. Give train_file or dataset_name."
        ) from error
    names = sorted(topics)[:max_documents]
    if len(names) < 2:
        raise DataError(f"max_documents: is {max_documents}; the default data needs 2, to hold one out.")
    texts = datasets.Dataset.from_dict({TEXT: [topics[name] for name in names]})
    sizes = np.array([len(text) for text in texts[TEXT]])
    every = min(max(2, round(1 / fraction)), len(sizes))
    first = min(range(every), key=lambda start: abs(int(sizes[start::every].sum()) - fraction * int(sizes.sum())))
    return TextSplits(*divide(texts, np.arange(len(sizes)) % every == first))
