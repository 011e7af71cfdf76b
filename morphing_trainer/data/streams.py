"""Data sets read as a stream: documents come one after the other, and nothing but their tokens is kept.

The stream is read once for both splits. Of every `1 / validation_split` documents, one that the seed picks is held out,
so that the length need not be known.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.utils import tqdm

from morphing_trainer.data.columns import kinds_of, kinds_of_row, useful
from morphing_trainer.data.documents import BEFORE, Document, documents
from morphing_trainer.data.files import check_files, files_fingerprint, piece_rows
from morphing_trainer.data.fingerprints import fingerprint
from morphing_trainer.data.hub import looks_local
from morphing_trainer.data.json_files import check_json_files
from morphing_trainer.data.making import Making, is_whole
from morphing_trainer.data.named import check_reachable, choose_splits, is_saved, load_named, loading
from morphing_trainer.data.progress import progress_bars
from morphing_trainer.data.request import DataRequest
from morphing_trainer.data.sources import check_request
from morphing_trainer.data.store import building, cache_folder
from morphing_trainer.data.writing import SPLITS, SampleWriter
from morphing_trainer.errors import DataError

Row = dict[str, Any]
BATCH_ROWS = 200


@dataclass(frozen=True)
class Stream:
    """Documents that come one after the other.

    Attributes:
        request: of which this is the data.
        where: how error messages call it.
        train: the rows to train on, of which some are to be held out if `validation` is None.
        validation: the rows to evaluate on.
        fingerprint: a name for all of it.
    """

    request: DataRequest
    where: str
    train: Any
    validation: Any | None
    fingerprint: str

    def rows(self) -> Iterator[tuple[bool, Row]]:
        """Every row, with whether it is held out for evaluation."""
        request = self.request
        with loading(self.where, request.dataset_config):
            for number, row in _numbered(self.train, request.max_documents):
                yield self.validation is None and held_out(number, request.validation_split, request.seed), row
            if self.validation is not None:
                for _, row in _numbered(self.validation, request.max_documents):
                    yield True, row

    def training_documents(self) -> Iterator[Document]:
        """The documents to train on, to learn a tokenizer from."""
        for held, row in self.rows():
            if not held:
                yield from documents({name: [value] for name, value in row.items()})


def _numbered(rows: Any, limit: int | None) -> Iterator[tuple[int, Row]]:
    """Rows with the number of their document, up to `limit` documents."""
    number = -1
    for row in rows:
        number += row.get(BEFORE) is None
        if limit is not None and number >= limit:
            return
        yield number, row


def held_out(number: int, fraction: float, seed: int) -> bool:
    """Whether document `number` is for evaluation: one of every round(1 / fraction), picked by `seed`."""
    every = max(2, round(1 / fraction))
    return number % every == int(np.random.default_rng([seed, number // every]).integers(every))


class _Pieces:
    """The rows of text files, again for each iteration."""

    def __init__(self, argument: str, paths: list[Path]) -> None:
        self.argument = argument
        self.paths = paths

    def __iter__(self) -> Iterator[Row]:
        yield from piece_rows(self.argument, self.paths)


def open_stream(request: DataRequest) -> Stream:
    """The data as a stream.

    Raises:
        DataError: if arguments contradict each other, or the data is missing, unreadable or has not the columns.
    """
    check_request(request)
    validation, held = None, None
    if request.train_file is not None:
        where = "train_file"
        train, name = _files(where, request.train_file, request.text_column)
        if request.validation_file is not None:
            validation, held = _files("validation_file", request.validation_file, request.text_column)
    else:
        assert request.dataset_name is not None
        where = f"dataset_name {request.dataset_name!r}"
        splits, name = _named(where, request.dataset_name, request.dataset_config)
        chosen, held = choose_splits(splits, request.train_split, where)
        train = _useful(splits[chosen], request.text_column, where)
        validation = _useful(splits[held], request.text_column, f"{where}, split {held!r}") if held else None
        name = f"{name} {chosen}"
    drawn = [request.validation_split, request.seed] if validation is None else held
    full = fingerprint(stream=name, column=request.text_column, limit=request.max_documents, held=drawn)
    return Stream(request, where, train, validation, full)


def _files(argument: str, files: str | tuple[str, ...], column: str) -> tuple[Any, str]:
    paths, reader = check_files(argument, files)
    name = files_fingerprint(paths)
    if reader == "text":
        return _Pieces(argument, paths), name
    with loading(argument, None):
        table = datasets.load_dataset(reader, data_files=[str(path) for path in paths], split="train", streaming=True)
    return _useful(table, column, argument), name


def _named(where: str, name: str, config: str | None) -> tuple[dict[str, Any], str]:
    """All splits as streams, and a name for what is in them now."""
    check_reachable(where, name)
    if is_saved(name):
        saved = load_named(where, name, config)
        prints = {str(split): table._fingerprint for split, table in saved.items()}
        return {str(split): table.to_iterable_dataset() for split, table in saved.items()}, fingerprint(saved=prints)
    with loading(where, config):
        local = looks_local(name)
        builder = datasets.load_dataset_builder(str(Path(name).expanduser()) if local else name, config)
        if local:
            check_json_files(where, builder)
        # The folder that the data would be converted to: its name holds the configuration and a hash of the files.
        return {str(k): v for k, v in builder.as_streaming_dataset().items()}, str(builder.cache_dir)


def _useful(table: datasets.IterableDataset, column: str, where: str) -> datasets.IterableDataset:
    kinds = kinds_of(table.features) if table.features is not None else None
    if kinds is None:
        with loading(where, None):
            first = next(iter(table.take(1)), None)
        if first is None:
            raise DataError(f"{where}: is empty. Give data with text.")
        kinds = kinds_of_row(first)
    return useful(table, kinds, column, where)


def make_stream_folders(stream: Stream, making: Making, n_positions: int | None = None) -> tuple[Path, Path]:
    """Folders of samples to train on and to evaluate on, made in one pass through the stream, or found made.

    Raises:
        DataError: if the stream breaks or has too little text, `block_size` does not fit the model, or the tokenizer
            cannot be used in this way.
    """
    making.check(n_positions)
    folder = cache_folder() / making.key(stream.fingerprint)
    if not all(is_whole(folder / split) for split in SPLITS):
        with building(folder, overwrite=True) as unfinished:
            _write(stream, making, unfinished)
    return folder / SPLITS[0], folder / SPLITS[1]


def _write(stream: Stream, making: Making, folder: Path) -> None:
    with ExitStack() as closing, progress_bars(float("inf")):
        writers = []
        for split in SPLITS:
            (folder / split).mkdir()
            writers.append(making.writer(folder / split))
            closing.callback(writers[-1].abandon)
        waiting: tuple[list[Row], list[Row]] = ([], [])
        counts = [0, 0]
        for held, row in tqdm(stream.rows(), desc="Tokenising", unit=" rows"):
            counts[held] += row.get(BEFORE) is None
            waiting[held].append(row)
            if len(waiting[held]) >= BATCH_ROWS:
                _encode(waiting[held], making, writers[held])
        if not counts[1]:
            raise DataError(
                f"{stream.where}: {counts[0]} documents are too few to hold out {stream.request.validation_split} of "
                "them from a stream. Leave streaming out, set a larger validation_split, or give a validation_file."
            )
        for rows, writer, count in zip(waiting, writers, counts, strict=True):
            _encode(rows, making, writer)
            writer.finish(count)


def _encode(rows: list[Row], making: Making, writer: SampleWriter) -> None:
    """Write the samples of `rows`, and empty it."""
    if rows:
        columns = making.encoder({name: [row.get(name) for row in rows] for name in rows[0]})
        ids = columns.pop("input_ids")
        rows.clear()
        if ids:
            extra = {name: np.asarray(column) for name, column in columns.items()}
            writer.add(np.concatenate(ids), np.array([len(row) for row in ids]), extra)
