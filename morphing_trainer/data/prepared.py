"""Prepared folders: samples, their tokenizer and what they were made of, to train from anywhere.

    meta.json      what the samples are, and of which request
    tokenizer/     as `save_pretrained` writes it
    train/ validation/    flat arrays, each with a meta.json of its own

Nothing in such a folder is executed, and nothing but it is needed: it trains without a network.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from morphing_trainer.data.fingerprints import tokenizer_fingerprint
from morphing_trainer.data.making import check_length
from morphing_trainer.data.request import DataRequest
from morphing_trainer.data.samples import Continuations
from morphing_trainer.data.sources import check_request
from morphing_trainer.data.store import META, building, read_meta, verify_arrays, write_meta
from morphing_trainer.data.tokenizer import load_tokenizer
from morphing_trainer.data.writing import SPLITS, VERSION, SampleSplits, open_splits
from morphing_trainer.errors import DataError

FORMAT = "morphing_trainer prepared data"
TOKENIZER = "tokenizer"
_NO_EFFECT = ("dataset_config", "train_split", "streaming", "max_documents")


@dataclass(frozen=True)
class Prepared:
    """A prepared folder, whose samples have been found whole.

    Attributes:
        folder: of the data.
        train: samples to train on.
        validation: samples to evaluate on.
        meta: what its `meta.json` holds.
    """

    folder: Path
    splits: SampleSplits
    meta: dict[str, Any]

    @property
    def train(self) -> Any:
        """Samples to train on."""
        return self.splits.train

    @property
    def validation(self) -> Any:
        """Samples to evaluate on."""
        return self.splits.validation

    @property
    def tokenizer_folder(self) -> Path:
        """Where its tokenizer lies."""
        return self.folder / TOKENIZER

    @property
    def block_size(self) -> int:
        """Tokens of the longest sample."""
        return self.splits.train.block_size

    def tokenizer(self, name: str | None = None, vocab_size: int | None = None) -> PreTrainedTokenizerBase:
        """The tokenizer of the folder; one called `name` must be the same.

        Raises:
            DataError: if it is another one.
        """
        own = load_tokenizer(str(self.tokenizer_folder))
        if tokenizer_fingerprint(own) != self.meta["tokenizer"]:
            raise DataError(
                f"{_where(self.folder)}: its tokenizer is not the one that its samples were made with: the folder is "
                "damaged. Copy it again as a whole, or prepare the data again."
            )
        if name is None:
            return own
        given = load_tokenizer(name)
        self._check_tokenizer(given, name)
        return given

    def _check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        if tokenizer_fingerprint(tokenizer) != self.meta["tokenizer"]:
            raise DataError(
                f"{_where(self.folder)}: was made with another tokenizer than {name!r}, so that its tokens mean "
                "something else to it. Prepare the data again with this tokenizer, or use the one in the folder."
            )

    def samples(self, tokenizer: PreTrainedTokenizerBase, n_positions: int | None = None) -> SampleSplits:
        """The samples.

        Raises:
            DataError: if they were made with another tokenizer, or are too long for the model.
        """
        check_length(self.block_size, n_positions)
        self._check_tokenizer(tokenizer, tokenizer.name_or_path or "that of this run")
        for split in (self.train, self.validation):
            fault = _fault(split, len(tokenizer))
            if fault:
                raise DataError(f"{_where(self.folder)}: {fault}. Prepare the data again.")
        return self.splits


def _fault(samples: Any, tokens: int) -> str:
    """What of samples cannot be, whatever their digests say; "" if all is well. Reads them once."""
    found = samples.tokens
    if found.size and not 0 <= int(found.min()) <= int(found.max()) < tokens:
        return f"a token is not one of the {tokens} of its tokenizer"
    if not isinstance(samples, Continuations):
        return ""
    lengths, starts = np.diff(samples.offsets), samples.text_starts
    if int(samples.offsets[0]) != 0 or lengths.min() < 1 or lengths.max() > samples.block_size:
        return f"a sample has no tokens, or more than block_size {samples.block_size}"
    if samples.prompts.min() < 0 or (samples.prompts > lengths).any():
        return "a prompt is longer than its sample"
    if not len(starts) or int(starts[0]) != 0 or (np.diff(starts) < 1).any() or int(starts[-1]) >= len(samples):
        return "texts do not begin one after the other"
    return ""


def _where(folder: Path) -> str:
    return f"prepared folder {str(folder)!r}"


def is_prepared(folder: Path) -> bool:
    """Whether this is a folder of `write_prepared`, damaged or not."""
    return (folder / TOKENIZER).is_dir() and any((folder / part / META).is_file() for part in ("", *SPLITS))


def check_prepared_request(request: DataRequest) -> None:
    """Raises DataError if arguments contradict each other, or ask for what a prepared folder cannot give any more."""
    check_request(request)
    default = DataRequest()
    for name in _NO_EFFECT:
        if getattr(request, name) != getattr(default, name):
            raise DataError(
                f"{name}: has no effect on dataset_name {request.dataset_name!r}, which is a prepared folder. "
                "Leave it out, or prepare the data again with it."
            )


def load_prepared(folder: Path, request: DataRequest | None = None) -> Prepared:
    """Open a prepared folder.

    Args:
        request: what is asked of it; its mode and block_size, if given, must be the folder's.

    Raises:
        DataError: if it is damaged, of another version, or not what is asked for.
    """
    where = _where(folder)
    meta = read_meta(folder, where)
    if meta.get("format") != FORMAT or not isinstance(meta.get("tokenizer"), str):
        raise DataError(f"{where}: {META} is not that of a prepared folder. Prepare the data again.")
    if meta.get("version") != VERSION:
        raise DataError(
            f"{where}: has format version {meta.get('version')!r}, this library reads {VERSION}. Prepare it again."
        )
    splits = open_splits(folder / SPLITS[0], folder / SPLITS[1], f"{where}, ")
    for split in SPLITS:
        verify_arrays(folder / split, where)
    mode, size = meta.get("mode"), splits.train.block_size
    for name, asked, found in (("sample_mode", mode, mode), ("block_size", size, size)):
        asked = getattr(request, name) if request is not None else None
        if asked is not None and asked != found:
            raise DataError(
                f"{name}: is {asked}, but {where} was made with {found}. Set it to {found} or leave it out, or "
                "prepare the data again."
            )
    return Prepared(folder, splits, meta)


def check_target(folder: Path, overwrite: bool) -> None:
    """Raises DataError if a prepared folder cannot be written here; before any work is done."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"output {str(folder)!r}: is a file. Give the name of a new folder.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not is_prepared(folder):
        raise DataError(f"output {str(folder)!r}: holds other files. Give the name of a new folder.")
    if not overwrite:
        raise DataError(
            f"output {str(folder)!r}: holds prepared data already. Give the name of a new folder, or --overwrite."
        )


def write_prepared(
    folder: Path,
    samples: tuple[Path, Path],
    tokenizer: PreTrainedTokenizerBase,
    request: DataRequest,
    overwrite: bool = False,
) -> Prepared:
    """Write a prepared folder: as a whole, or not at all.

    Args:
        folder: is made; one that is there is replaced if `overwrite`, or if it is empty.
        samples: the folders of the samples to train on and to evaluate on.
        tokenizer: that they were made with.
        request: that they were made of.

    Raises:
        DataError: if the folder holds something that is not to be overwritten.
    """
    check_target(folder, overwrite)
    with building(folder, overwrite=True) as unfinished:
        for split, source in zip(SPLITS, samples, strict=True):
            shutil.copytree(source, unfinished / split, copy_function=shutil.copyfile)
        tokenizer.save_pretrained(str(unfinished / TOKENIZER))
        # What is on disk is what will be compared with: saving may leave out what has no meaning.
        kept = tokenizer_fingerprint(load_tokenizer(str(unfinished / TOKENIZER)))
        meta = {
            "format": FORMAT,
            "version": VERSION,
            "mode": request.sample_mode or "packing",
            "tokenizer": kept,
            "request": asdict(request),
        }
        write_meta(unfinished, meta)
    return load_prepared(folder)
