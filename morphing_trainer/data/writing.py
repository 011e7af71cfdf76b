"""Rows of tokens as flat arrays on disk, with what is to be known of them; and back as samples."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from morphing_trainer.data.fingerprints import fingerprint
from morphing_trainer.data.request import Mode
from morphing_trainer.data.samples import Blocks, Continuations, Counts
from morphing_trainer.data.store import ArrayWriter, open_arrays, read_meta, write_meta
from morphing_trainer.errors import DataError

Samples = Blocks | Continuations
VERSION = 1
"""Of what is written; to be raised when the same request gives other samples."""
SPLITS = ("train", "validation")


class SampleWriter:
    """Writes the rows of an encoder as flat arrays into a folder, and counts.

    Args:
        folder: is there, and empty.
        mode: of the encoder.
        block_size: tokens of the longest sample.
        dtype: holds every token.
        tokenizer: fingerprint of the one that the tokens are of.
    """

    def __init__(self, folder: Path, mode: Mode, block_size: int, dtype: DTypeLike, tokenizer: str) -> None:
        self.folder = folder
        self.mode = mode
        self.block_size = block_size
        self.tokenizer = tokenizer
        self._packing = mode == "packing"
        self._files = ExitStack()
        types: dict[str, Any] = {"tokens": dtype}
        if not self._packing:
            types |= {"offsets": np.int64, "prompts": np.int32, "text_starts": np.int64}
        self._arrays = {
            name: self._files.enter_context(ArrayWriter(folder / f"{name}.bin", dtype)) for name, dtype in types.items()
        }
        self._texts = self._short = self._open = 0
        if not self._packing:
            self._arrays["offsets"].append(np.zeros(1, np.int64))

    def add(self, tokens: NDArray[np.int32], lengths: NDArray[np.int64], extra: Mapping[str, NDArray[Any]]) -> None:
        """Rows of `lengths` tokens each, (rows,), one after the other in `tokens`; `extra` are the other columns."""
        arrays = self._arrays
        stops = np.cumsum(lengths)
        if self._packing:
            self._count(np.flatnonzero(extra["closes"]), stops)
        else:
            starts = np.flatnonzero(extra["starts"])
            arrays["text_starts"].append(starts + arrays["prompts"].length)
            arrays["offsets"].append(stops + arrays["tokens"].length)
            arrays["prompts"].append(extra["prompt"])
            self._texts += len(starts)
            begins = np.append(starts, len(lengths))
            alone = np.diff(begins) == 1  # a text of one sample, which it may not fill
            self._short += int((lengths[starts[alone]] < self.block_size).sum())
        arrays["tokens"].append(tokens)

    def _count(self, closing: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        """Count the documents that rows `closing` close; what the last rows leave open is kept in mind."""
        if len(closing):
            sizes = np.diff(stops[closing], prepend=-self._open)
            self._texts += len(sizes)
            self._short += int((sizes < self.block_size).sum())
            self._open = 0
            last = int(stops[closing[-1]])
        else:
            last = 0
        self._open += int(stops[-1] if len(stops) else 0) - last

    def finish(self, documents: int) -> None:
        """Close the files and describe them, with how many documents there were."""
        self._files.close()
        counts = Counts(documents, documents - self._texts, self._short, self._arrays["tokens"].length)
        arrays = {name: array.description for name, array in self._arrays.items()}
        digests = {name: about["digest"] for name, about in arrays.items()}
        meta = {
            "format": "morphing_trainer samples",
            "version": VERSION,
            "mode": self.mode,
            "block_size": self.block_size,
            # Of what the samples are, not of where they came from: the same on every machine.
            "fingerprint": fingerprint(
                mode=self.mode, block_size=self.block_size, tokenizer=self.tokenizer, arrays=digests
            ),
            "counts": asdict(counts),
            "arrays": arrays,
        }
        write_meta(self.folder, meta)

    def abandon(self) -> None:
        """Close the files of a folder that nobody will read."""
        self._files.close()


def open_samples(folder: Path, where: str) -> Samples:
    """The samples in a folder that `SampleWriter` has finished.

    Raises:
        DataError: if it is damaged, or holds less than one sample.
    """
    meta = read_meta(folder, where)
    try:
        arrays = open_arrays(folder, meta["arrays"], where)
        counts, block_size, name = Counts(**meta["counts"]), int(meta["block_size"]), str(meta["fingerprint"])
        if block_size < 1 or any(type(count) is not int or count < 0 for count in meta["counts"].values()):
            raise ValueError("a number in it cannot be")
        if meta["mode"] == "packing":
            blocks = counts.tokens // block_size
            if blocks == 0:
                raise DataError(
                    f"{where}: has {counts.tokens} tokens, less than one block of {block_size}. "
                    f"Give more text, or set a smaller block_size. Read: {counts}."
                )
            return Blocks(arrays["tokens"][: blocks * block_size].reshape(blocks, block_size), name, counts)
        if not len(arrays["prompts"]):
            raise DataError(f"{where}: has no text. Give documents that are not blank. Read: {counts}.")
        offsets, prompts = arrays["offsets"], arrays["prompts"]
        if len(offsets) != len(prompts) + 1 or offsets[-1] != len(arrays["tokens"]):
            raise ValueError("the arrays do not belong together")
        return Continuations(**arrays, block_size=block_size, fingerprint=name, counts=counts)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, ZeroDivisionError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: {folder / 'meta.json'} is damaged ({error!r}). Prepare the data again.") from error


@dataclass(frozen=True)
class SampleSplits:
    """Samples to train on and to evaluate on."""

    train: Samples
    validation: Samples


def open_splits(train: Path, validation: Path, where: str = "") -> SampleSplits:
    """`open_samples` of two folders; `where` goes before what errors call them."""
    samples = open_samples(train, f"{where}training data")
    return SampleSplits(samples, open_samples(validation, f"{where}validation data"))
