"""Local files as tables of documents; long text files in pieces, so that no file is ever in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets

from morphing_trainer.data.columns import useful_texts
from morphing_trainer.data.documents import BEFORE, CONTINUES, TEXT
from morphing_trainer.data.fingerprints import fingerprint
from morphing_trainer.data.hub import first_line
from morphing_trainer.data.json_files import json_fault
from morphing_trainer.data.packing import place_to_cut
from morphing_trainer.data.progress import progress_bars
from morphing_trainer.errors import DataError

TEXT_SUFFIXES = (".txt", ".md")
TABLE_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
SMALL_BYTES = 8_000_000
"""Text files that are read as they are."""
PIECE_CHARACTERS = 1_000_000
BEFORE_CHARACTERS = 2_000
"""Of the piece before, enough to find its last sentence."""
PIECES = datasets.Features(
    {TEXT: datasets.Value("string"), BEFORE: datasets.Value("string"), CONTINUES: datasets.Value("bool")}
)


def check_files(argument: str, files: str | Sequence[str]) -> tuple[list[Path], str]:
    """The paths of `files`, and what reads them: "text", or a reader of `datasets`.

    Raises:
        DataError: if one is missing or empty, they are of several kinds, or of a kind that nothing reads.
    """
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
        return paths, "text"
    if len(suffixes) > 1:
        raise DataError(f"{argument}: mixes {', '.join(sorted(suffixes))} files. Give files of one kind.")
    suffix = suffixes.pop()
    if suffix not in TABLE_READERS:
        known = ", ".join((*TEXT_SUFFIXES, *TABLE_READERS))
        kind = suffix or "files without a suffix"
        raise DataError(f"{_where(argument, paths)}: cannot read {kind}. Give one of {known}.")
    if any(path.stat().st_size == 0 for path in paths):
        raise DataError(f"{_where(argument, paths)}: is empty. Give a file with text.")
    if TABLE_READERS[suffix] == "json":
        for path in paths:
            if fault := json_fault(path):
                raise DataError(f"{argument} {str(path)!r}: {fault}. Correct it.")
    return paths, TABLE_READERS[suffix]


def _where(argument: str, paths: Sequence[Path]) -> str:
    return f"{argument} {', '.join(repr(str(path)) for path in paths)}"


def read_files(argument: str, files: str | Sequence[str], text_column: str) -> datasets.Dataset:
    """Documents of local files, all of one kind; `argument` is what an error calls them.

    Raises:
        DataError: if they are missing, unreadable, of several kinds, or without text.
    """
    paths, reader = check_files(argument, files)
    size = sum(path.stat().st_size for path in paths)
    if reader == "text":
        if size > SMALL_BYTES:
            return _in_pieces(argument, paths, size)
        texts = ["".join(read_pieces(argument, path)) for path in paths]
        return datasets.Dataset.from_dict({TEXT: texts})
    where = _where(argument, paths)
    try:
        with progress_bars(size):
            table = datasets.load_dataset(reader, data_files=[str(path) for path in paths], split="train")
    except Exception as error:  # the readers raise many types, all of which mean the same here
        reason = first_line(error.__cause__ or error)
        suffix = paths[0].suffix.lower()
        raise DataError(f"{where}: no rows can be read from it as {suffix} ({reason}). Correct it.") from error
    return useful_texts(table, text_column, where)


def read_pieces(argument: str, path: Path) -> Iterator[str]:
    """The text of a file in pieces of about `PIECE_CHARACTERS`, cut where packing would cut it, too.

    Raises:
        DataError: if it cannot be read, is not UTF-8, or holds nothing but space.
    """
    where, blank, rest = f"{argument} {str(path)!r}", True, ""
    try:
        with path.open(encoding="utf-8-sig") as file:  # also without the mark that some editors put at the start
            while chunk := file.read(PIECE_CHARACTERS):
                blank = blank and chunk.isspace()
                rest += chunk
                if len(rest) > 2 * PIECE_CHARACTERS:
                    at = place_to_cut(rest, PIECE_CHARACTERS, PIECE_CHARACTERS)
                    if at is not None:
                        yield rest[:at]
                        rest = rest[at:]
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is not UTF-8 text ({first_line(error)}). Convert it to UTF-8.") from error
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({first_line(error)}). Check its permissions.") from error
    if blank:
        raise DataError(f"{where}: is empty. Give a file with text.")
    yield rest


def piece_rows(argument: str, paths: Sequence[Path]) -> Iterator[dict[str, str | bool | None]]:
    """A row for each piece of each file, see `documents`."""
    for path in paths:
        before: str | None = None
        pieces = read_pieces(argument, path)
        piece = next(pieces)
        for following in pieces:
            yield {TEXT: piece, BEFORE: before, CONTINUES: True}
            before, piece = piece[-BEFORE_CHARACTERS:], following
        yield {TEXT: piece, BEFORE: before, CONTINUES: False}


def files_fingerprint(paths: Sequence[Path]) -> str:
    """A name for the files as they are now."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return fingerprint(files=stats, piece=PIECE_CHARACTERS)


def _in_pieces(argument: str, paths: list[Path], size: int) -> datasets.Dataset:
    try:
        with progress_bars(size):
            return datasets.Dataset.from_generator(
                piece_rows,
                features=PIECES,
                gen_kwargs={"argument": argument, "paths": tuple(paths)},  # a list would be divided into shards
                fingerprint=files_fingerprint(paths),
                writer_batch_size=8,
            )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from None
        raise
