"""One way in for every kind of data: `open_data(request)`, then its tokenizer, then its samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from morphing_trainer.data.documents import Document, documents
from morphing_trainer.data.making import Making, characters_per_row, make_folder, rows_at_once
from morphing_trainer.data.packing import cut_long
from morphing_trainer.data.prepared import Prepared, check_prepared_request, is_prepared, load_prepared
from morphing_trainer.data.request import DEFAULT_BLOCK_SIZE, DataRequest
from morphing_trainer.data.sources import TextSplits, load_texts
from morphing_trainer.data.streams import Stream, make_stream_folders, open_stream
from morphing_trainer.data.tokenizer import load_tokenizer, trained_tokenizer
from morphing_trainer.data.writing import SampleSplits, open_splits

TOKENIZER_CHARACTERS = 50_000_000
"""Of a long text, so much of it is enough to learn a tokenizer from."""


class Data(Protocol):
    """Data that is there, and whose samples can be had."""

    @property
    def block_size(self) -> int:
        """Tokens of the longest sample."""

    def tokenizer(self, name: str | None, vocab_size: int) -> PreTrainedTokenizerBase:
        """The tokenizer called `name` (folder or Hub id), or this data's own if None."""

    def samples(self, tokenizer: PreTrainedTokenizerBase, n_positions: int | None = None) -> SampleSplits:
        """The samples, made now or found made; `n_positions` is the longest sequence that the model takes."""


@dataclass(frozen=True)
class Text:
    """Documents, of which samples are made."""

    request: DataRequest
    texts: TextSplits | Stream

    @property
    def block_size(self) -> int:
        """Tokens of the longest sample."""
        return DEFAULT_BLOCK_SIZE if self.request.block_size is None else self.request.block_size

    def making(self, tokenizer: PreTrainedTokenizerBase) -> Making:
        """How samples are made of the documents."""
        request = self.request
        return Making(tokenizer, request.sample_mode or "packing", self.block_size, request.language, request.workers)

    def tokenizer(self, name: str | None, vocab_size: int) -> PreTrainedTokenizerBase:
        """The tokenizer called `name`, or one of `vocab_size` tokens trained on the training text."""
        if name is not None:
            return load_tokenizer(name)
        texts = self.texts
        source = texts.fingerprint if isinstance(texts, Stream) else texts.train._fingerprint
        return trained_tokenizer(self._training_text, f"{source} {TOKENIZER_CHARACTERS}", vocab_size)

    def _training_text(self) -> Iterator[str]:
        """The text to learn a tokenizer from: all of it, or rows from all over it, or the beginning of a stream."""
        read = 0
        for document in _documents(self.texts):
            if not document.blank:
                yield from cut_long(document.whole)  # the library holds 256 texts at once
                read += len(document.text)
                if read >= TOKENIZER_CHARACTERS:
                    return

    def folders(self, tokenizer: PreTrainedTokenizerBase, n_positions: int | None = None) -> tuple[Path, Path]:
        """Where the samples to train on and to evaluate on are, once made."""
        making, texts = self.making(tokenizer), self.texts
        if isinstance(texts, Stream):
            return make_stream_folders(texts, making, n_positions)
        return make_folder(texts.train, making, n_positions), make_folder(texts.validation, making, n_positions)

    def samples(self, tokenizer: PreTrainedTokenizerBase, n_positions: int | None = None) -> SampleSplits:
        """The samples of both splits, made now or found made."""
        return open_splits(*self.folders(tokenizer, n_positions))


def _documents(texts: TextSplits | Stream) -> Iterator[Document]:
    """The documents to train on, or, if they are more than a tokenizer needs, some from all over them."""
    if isinstance(texts, Stream):
        yield from texts.training_documents()
        return
    train = texts.train
    every = max(1, int(characters_per_row(train) * len(train) // TOKENIZER_CHARACTERS))
    chosen = train if every == 1 else train.select(range(0, len(train), every))
    for batch in chosen.iter(rows_at_once(train)):
        yield from documents(batch)


def open_data(request: DataRequest) -> Data:
    """Find the data that is asked for, without making samples yet.

    Raises:
        DataError: if arguments contradict each other, or the data is missing, unreadable or empty.
    """
    if request.dataset_name is not None and is_prepared(Path(request.dataset_name).expanduser()):
        check_prepared_request(request)
        return load_prepared(Path(request.dataset_name).expanduser(), request)
    return Text(request, open_stream(request) if request.streaming else load_texts(request))


__all__ = ["Data", "Prepared", "SampleSplits", "Text", "open_data"]
