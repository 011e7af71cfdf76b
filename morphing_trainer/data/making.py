"""Samples made of documents: tokenised once, in several processes, and kept for the next run."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from morphing_trainer.data.continuation import Cutter
from morphing_trainer.data.documents import BEFORE
from morphing_trainer.data.fingerprints import fingerprint, tokenizer_fingerprint
from morphing_trainer.data.packing import Packer
from morphing_trainer.data.progress import progress_bars
from morphing_trainer.data.request import Mode
from morphing_trainer.data.store import building, cache_folder, open_arrays, read_meta
from morphing_trainer.data.writing import VERSION, Samples, SampleWriter, open_samples
from morphing_trainer.errors import DataError

BATCH_CHARACTERS = 1_000_000
LITTLE_CHARACTERS = 5_000_000
"""Text for which starting processes does not pay off."""
SAMPLED_ROWS = 50
ROWS_WRITTEN = {"packing": 200, "continuation": 10_000}
"""Rows of tokens that are read back at once; one of packing holds up to some 20,000 tokens."""


@dataclass(frozen=True)
class Making:
    """How samples are made of documents.

    Attributes:
        tokenizer: has an end-of-text token.
        mode: packing or continuation.
        block_size: tokens of the longest sample.
        language: where sentences end, for continuation.
        workers: processes that tokenise; None is as many as pay off.
    """

    tokenizer: PreTrainedTokenizerBase
    mode: Mode = "packing"
    block_size: int = 128
    language: str = "en"
    workers: int | None = None

    def check(self, n_positions: int | None) -> None:
        """Raises DataError if no samples can be made in this way, or not for a model of `n_positions`."""
        if self.block_size < 2:
            raise DataError(
                f"block_size: must be at least 2 (a token, and the one to predict from it), is {self.block_size}."
            )
        check_length(self.block_size, n_positions)
        name = self.tokenizer.name_or_path
        if self.tokenizer.eos_token_id is None:
            raise DataError(
                f"tokenizer {name!r}: has no end-of-text token (eos_token) to put between documents. "
                "Set one with `tokenizer.eos_token = ...` and save it, or use another tokenizer."
            )
        if self.mode == "continuation" and not self.tokenizer.is_fast:
            raise DataError(
                f"tokenizer {name!r}: is written in Python and does not tell where in the text its tokens are, as "
                "sample_mode continuation needs. Use a fast tokenizer, or sample_mode packing."
            )

    @property
    def encoder(self) -> Packer | Cutter:
        """What makes rows of tokens of documents."""
        if self.mode == "packing":
            return Packer(self.tokenizer)
        return Cutter(self.tokenizer, self.block_size, self.language)

    @property
    def dtype(self) -> type[np.uint16] | type[np.int32]:
        """The smaller type that holds every token."""
        highest = max([*self.tokenizer.get_vocab().values(), int(self.tokenizer.eos_token_id)])
        return np.uint16 if highest < 2**16 else np.int32

    def writer(self, folder: Path) -> SampleWriter:
        """A writer of samples into `folder`."""
        return SampleWriter(folder, self.mode, self.block_size, self.dtype, tokenizer_fingerprint(self.tokenizer))

    def key(self, source: str) -> str:
        """A name for the samples that are made of the documents called `source`, before they are made."""
        return fingerprint(
            version=VERSION,
            source=source,
            tokenizer=tokenizer_fingerprint(self.tokenizer),
            mode=self.mode,
            block_size=self.block_size,
            language=self.language if self.mode == "continuation" else None,
        )


def check_length(block_size: int, n_positions: int | None) -> None:
    """Raises DataError if samples of `block_size` tokens do not fit a model that takes `n_positions`."""
    if n_positions is not None and block_size > n_positions:
        raise DataError(
            f"block_size: is {block_size}, but the model takes at most {n_positions} tokens (n_positions). "
            f"Set block_size to {n_positions} or less."
        )


def make_samples(
    texts: datasets.Dataset, making: Making, n_positions: int | None = None, where: str = "training data"
) -> Samples:
    """All of `texts` as samples, made now, or found where an earlier run has left them.

    In packing, what is left at the very end, less than a block, is dropped.

    Args:
        texts: documents, see `documents.COLUMNS`.
        n_positions: the longest sequence the model takes, if it has a limit.
        where: how error messages call this data.

    Raises:
        DataError: if the text is shorter than one block, `block_size` does not fit the model, or the tokenizer cannot
            be used in this way.
    """
    return open_samples(make_folder(texts, making, n_positions), where)


def make_folder(texts: datasets.Dataset, making: Making, n_positions: int | None = None) -> Path:
    """The folder of the cache in which the samples of `texts` are; they are made now if need be.

    Raises:
        DataError: if `block_size` does not fit the model, or the tokenizer cannot be used in this way.
    """
    making.check(n_positions)
    folder = cache_folder() / making.key(texts._fingerprint)
    if not is_whole(folder):
        with building(folder) as unfinished:
            _write(texts, making, making.writer(unfinished))
    return folder


def is_whole(folder: Path) -> bool:
    """Whether there are samples in a folder of the cache; what is damaged is removed."""
    if not folder.exists():
        return False
    try:
        open_arrays(folder, read_meta(folder, "cache")["arrays"], "cache")
    except (DataError, KeyError, TypeError, AttributeError):
        shutil.rmtree(folder)
        return False
    return True


def _write(texts: datasets.Dataset, making: Making, writer: SampleWriter) -> None:
    characters, batch_size = characters_per_row(texts), rows_at_once(texts)
    workers = _workers(making.workers, characters * len(texts), -(-len(texts) // batch_size))
    scratch = writer.folder / "rows"
    scratch.mkdir()
    try:
        with progress_bars(characters * len(texts)), _failures_of_workers():
            rows = texts.map(
                making.encoder,
                batched=True,
                batch_size=batch_size,
                writer_batch_size=batch_size,
                remove_columns=texts.column_names,
                features=making.encoder.features,
                num_proc=workers if workers > 1 else None,
                cache_file_name=str(scratch / "rows.arrow"),
                new_fingerprint=making.key(texts._fingerprint),
                desc="Tokenising",
            )
        for table in rows.with_format("arrow").iter(batch_size=ROWS_WRITTEN[making.mode]):
            columns = {name: table[name].combine_chunks() for name in table.column_names}
            ids = columns.pop("input_ids")
            extra = {name: column.to_numpy(zero_copy_only=False) for name, column in columns.items()}
            writer.add(ids.flatten().to_numpy(), ids.value_lengths().to_numpy(), extra)
        del rows
        writer.finish(_document_count(texts))
    finally:
        writer.abandon()
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _failures_of_workers() -> Iterator[None]:
    """What is meant by the errors that `datasets` raises where several processes tokenise."""
    try:
        yield
    except Exception as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # it waits for the workers, which have stopped too
            raise KeyboardInterrupt from None
        if isinstance(error, RuntimeError) and "abruptly died" in str(error):
            raise DataError(
                "preprocessing_num_workers: a process that tokenises was killed, as happens where memory runs out. "
                "Set it to a smaller number."
            ) from error
        raise


def rows_at_once(texts: datasets.Dataset) -> int:
    """Rows that may be in memory together: of about `BATCH_CHARACTERS`."""
    return int(max(1, min(1000, BATCH_CHARACTERS // max(1, characters_per_row(texts)))))


def characters_per_row(texts: datasets.Dataset) -> float:
    """The mean length of a row, of rows spread evenly over the data."""
    every = max(1, len(texts) // SAMPLED_ROWS)
    some = texts.select(range(0, len(texts), every))
    return sum(len(value) for row in some for value in row.values() if isinstance(value, str)) / max(1, len(some))


def _workers(asked: int | None, characters: float, batches: int) -> int:
    """Processes to tokenise with: those asked for, else one per core, and one for little text."""
    if asked is not None:
        return min(asked, max(1, batches))
    if characters <= LITTLE_CHARACTERS:
        return 1
    # Cores that this process may use, where the system tells: in a container they are fewer than there are.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, max(1, batches))


def _document_count(texts: datasets.Dataset) -> int:
    if BEFORE not in texts.column_names:
        return len(texts)
    return sum(before is None for before in texts[BEFORE])
