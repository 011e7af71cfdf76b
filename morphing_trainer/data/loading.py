"""Between the cursor's indices and the training loop: placeholders, masked collation, quiet iterators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Dataset

from morphing_trainer.data.cursor import PLACEHOLDER
from morphing_trainer.errors import DataError

IGNORED_LABEL = -100
"""The label that cross-entropy leaves out."""


@dataclass(frozen=True)
class Placeholder:
    """A sample that is there for its shape only."""

    sample: Any


class WithPlaceholder(Dataset[Any]):
    """A map-style data set in which index `PLACEHOLDER` gives sample 0, marked as a `Placeholder`."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return Placeholder(self.dataset[0]) if index == PLACEHOLDER else self.dataset[index]

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Any]:
        fetch = getattr(self.dataset, "__getitems__", None)
        if fetch is None or PLACEHOLDER in indices:
            return [self[index] for index in indices]
        samples: Sequence[Any] = fetch(indices)
        return samples


def masked_collate(collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`collate`, with the labels of a batch of placeholders ignored: it adds nothing to a loss summed over tokens.

    A loss that is *averaged* over such a batch is NaN: divide the sum by the tokens of all ranks instead.
    """
    return partial(_collate_masked, collate)  # not a closure, which could not be sent to spawned workers


def _collate_masked(collate: Callable[[Any], Any], samples: Sequence[Any]) -> Any:
    if not isinstance(samples[0], Placeholder):
        return collate(samples)
    batch = collate([placeholder.sample for placeholder in samples])
    if "labels" not in batch:
        raise DataError(
            "data collator: its batches have no 'labels', so that samples that only fill up the last batch of an epoch "
            "cannot be left out of the loss. Add labels, or set dataloader_drop_last."
        )
    batch["labels"] = torch.full_like(batch["labels"], IGNORED_LABEL)
    return batch


class QuietLoader:
    """A data loader whose iterators can leave torch's global random state alone.

    Making an iterator of a `DataLoader` draws from the global generator. That is part of an uninterrupted run, but a
    run taken up in the middle of an epoch makes one more iterator, after which dropout would draw other numbers.

    Args:
        loader: a `DataLoader`, or accelerate's wrapper of one.
        preserve_rng: undo what is drawn up to the first batch; without it this is exactly the wrapped loader.
    """

    def __init__(self, loader: Any, preserve_rng: bool) -> None:
        self.loader = loader
        self.preserve_rng = preserve_rng

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not set yet while being copied: do not ask it for itself
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        return self._quietly() if self.preserve_rng else iter(self.loader)

    def _quietly(self) -> Iterator[Any]:
        # The first batch is fetched inside, because accelerate's loaders only draw when it is asked for. The draw is
        # always on the CPU; asking for the state of other devices would wait for them.
        with torch.random.fork_rng(devices=()):
            batches = iter(self.loader)
            first = list(islice(batches, 1))
        yield from first
        yield from batches
