"""What a run, or one stage of it, asks of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Mode = Literal["packing", "continuation"]
DEFAULT_BLOCK_SIZE = 128


class DataSettings(Protocol):
    """The fields that `DataRequest.of` reads; `cli.groups.DataArguments` has them."""

    dataset_name: str | None
    dataset_config: str | None
    train_file: str | list[str] | None
    validation_file: str | list[str] | None
    train_split: str
    text_column: str
    validation_split: float
    streaming: bool
    max_documents: int | None
    sample_mode: Mode | None
    language: str
    block_size: int | None
    preprocessing_num_workers: int | None


@dataclass(frozen=True)
class DataRequest:
    """Where the text comes from and how samples are made of it. Two equal requests give equal samples.

    Attributes:
        dataset_name: Hub id, local folder (of data files, or written by `save_to_disk`), or a prepared folder.
        dataset_config: configuration of that data set.
        train_file: one or several files: .txt and .md (each one document), .jsonl, .json, .csv, .parquet.
        validation_file: the same, for evaluation.
        train_split: the split of the data set to train on.
        text_column: the column that holds the text, where there are columns.
        validation_split: fraction of the documents held out where there is no validation set.
        seed: decides which documents are held out.
        streaming: read the data set as a stream; nothing but its tokens is kept on disk.
        max_documents: documents read at most, before some are held out.
        sample_mode: "packing" or "continuation"; None is what a prepared folder holds, else packing.
        language: of the text, an ISO 639 code: where sentences end.
        block_size: tokens of the longest sample; None is what a prepared folder holds, else 128.
        workers: processes that tokenise; None is as many as pay off.
    """

    dataset_name: str | None = None
    dataset_config: str | None = None
    train_file: str | tuple[str, ...] | None = None
    validation_file: str | tuple[str, ...] | None = None
    train_split: str = "train"
    text_column: str = "text"
    validation_split: float = 0.05
    seed: int = 0
    streaming: bool = False
    max_documents: int | None = None
    sample_mode: Mode | None = None
    language: str = "en"
    block_size: int | None = None
    workers: int | None = None

    @classmethod
    def of(cls, settings: DataSettings, seed: int) -> DataRequest:
        """The request that the data arguments of a run make."""
        return cls(
            dataset_name=settings.dataset_name,
            dataset_config=settings.dataset_config,
            train_file=_fixed(settings.train_file),
            validation_file=_fixed(settings.validation_file),
            train_split=settings.train_split,
            text_column=settings.text_column,
            validation_split=settings.validation_split,
            seed=seed,
            streaming=settings.streaming,
            max_documents=settings.max_documents,
            sample_mode=settings.sample_mode,
            language=settings.language,
            block_size=settings.block_size,
            workers=settings.preprocessing_num_workers,
        )


def _fixed(files: str | Sequence[str] | None) -> str | tuple[str, ...] | None:
    return files if files is None or isinstance(files, str) else tuple(files)
