"""The order in which an epoch reads its samples: shuffled one by one, text by text, or mixed from several sources."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from morphing_trainer.errors import DataError

Ints = NDArray[np.int64]


def permutation(length: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of `epoch`, (length,) int64: the one of accelerate's `SeedableRandomSampler(data_seed=seed)`."""
    generator = torch.Generator().manual_seed(seed + epoch)
    return torch.randperm(length, generator=generator, device="cpu")


class Arranged(NamedTuple):
    """One epoch, arranged.

    Attributes:
        indices: (length,) the samples in the order they are read.
        begins: ascending positions at which a text begins; None where every sample stands for itself.
    """

    indices: Ints
    begins: Ints | None


class Order(Protocol):
    """How the samples of a data set are arranged, epoch by epoch."""

    def __len__(self) -> int:
        """Samples in an epoch, the same in each."""

    def arrange(self, seed: int, epoch: int, shuffle: bool) -> Arranged:
        """The order of `epoch`; without `shuffle`, that of the data."""


@dataclass(frozen=True)
class Single:
    """`length` samples, each for itself."""

    length: int

    def __len__(self) -> int:
        return self.length

    def arrange(self, seed: int, epoch: int, shuffle: bool) -> Arranged:
        if not shuffle:
            return Arranged(np.arange(self.length), None)
        return Arranged(permutation(self.length, seed, epoch).numpy(), None)


class Texts:
    """Texts of one or several samples each, which are read one after the other.

    Args:
        starts: (texts,) ascending, the first sample of each text; the first is 0.
        length: samples of all texts.
    """

    def __init__(self, starts: Ints, length: int) -> None:
        assert len(starts) and starts[0] == 0 and starts[-1] < length
        self.starts = np.asarray(starts, np.int64)
        self.length = length

    def __len__(self) -> int:
        return self.length

    def arrange(self, seed: int, epoch: int, shuffle: bool) -> Arranged:
        sizes = np.diff(self.starts, append=self.length)
        if not shuffle:
            return Arranged(np.arange(self.length), self.starts)
        order = permutation(len(self.starts), seed, epoch).numpy()
        return _in_turn(self.starts[order], sizes[order])


class Mixed:
    """Samples of several sources, each with its share.

    An epoch is as long as can be with no sample read twice: the source that is shortest for its share is read whole, of
    the others a part, drawn anew for each epoch. Which source is next is drawn too.

    Args:
        orders: of the sources, whose samples follow each other in one data set.
        weights: their shares, in any unit.

    Raises:
        DataError: if a share is so small that an epoch has no sample of its source.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float]) -> None:
        assert len(orders) == len(weights) and min(weights) > 0
        shares = np.asarray(weights, np.float64) / sum(weights)
        lengths = np.array([len(order) for order in orders])
        total = float((lengths / shares).min())
        # Rounding up by a hair: 0.1 * 30 is a little less than 3.
        self.counts = np.minimum(lengths, np.floor(total * shares + 1e-9)).astype(np.int64)
        self.orders = tuple(orders)
        self._offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        if self.counts.min() < 1:
            source = int(self.counts.argmin())
            raise DataError(
                f"mix: source {source + 1} has a share of {shares[source]:.2%}, which is not one sample in the "
                f"{int(self.counts.sum())} of an epoch. Give it a larger weight, or leave it out."
            )

    def __len__(self) -> int:
        return int(self.counts.sum())

    def arrange(self, seed: int, epoch: int, shuffle: bool) -> Arranged:
        pools, starts, sizes, before = [], [], [], 0
        for number, (order, count) in enumerate(zip(self.orders, self.counts.tolist(), strict=True)):
            arranged = order.arrange(seed_of(seed, f"source {number}"), epoch, shuffle)
            units = np.arange(count) if arranged.begins is None else arranged.begins[arranged.begins < count]
            pools.append(arranged.indices[:count] + self._offsets[number])
            starts.append(units + before)
            sizes.append(np.diff(units, append=count))
            before += count
        sources = np.repeat(np.arange(len(starts)), [len(units) for units in starts])
        turns = sources[permutation(len(sources), seed_of(seed, "sources"), epoch).numpy()]
        place = np.argsort(turns, kind="stable")  # of each source's units, in their own order
        unit_starts, unit_sizes = np.empty_like(sources), np.empty_like(sources)
        unit_starts[place], unit_sizes[place] = np.concatenate(starts), np.concatenate(sizes)
        arranged = _in_turn(unit_starts, unit_sizes)
        begins = arranged.begins if any(isinstance(order, Texts) for order in self.orders) else None
        return Arranged(np.concatenate(pools)[arranged.indices], begins)


def order_of(dataset: Any) -> Order:
    """The order of a data set: its own (`order`), that of its texts (`text_starts`), or sample by sample."""
    own = getattr(dataset, "order", None)
    if own is not None:
        found: Order = own
        return found
    starts = getattr(dataset, "text_starts", None)
    return Single(len(dataset)) if starts is None else Texts(starts, len(dataset))


def _in_turn(starts: Ints, sizes: Ints) -> Arranged:
    """Runs of consecutive indices, one run after the other: `sizes[k]` of them from `starts[k]`."""
    begins = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    return Arranged(np.repeat(starts - begins, sizes) + np.arange(int(sizes.sum())), begins)


def seed_of(seed: int, what: str) -> int:
    """A seed for `what`, so that data sets of equal length are not read in the same order."""
    return int.from_bytes(hashlib.sha256(f"{what} of seed {seed}".encode()).digest()[:6], "big")
