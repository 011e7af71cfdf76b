"""Several data sets as one, each with its share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Subset

from morphing_trainer.data.orders import Mixed, order_of


class Mixture(Dataset[Any]):
    """The samples of all `parts`, one part behind the other; `order` says which of them an epoch reads, and when.

    Args:
        parts: data sets whose samples one collator takes.
        weights: their shares of an epoch, in any unit.

    Raises:
        DataError: if a share is too small, see `Mixed`.
    """

    def __init__(self, parts: Sequence[Any], weights: Sequence[float]) -> None:
        self.parts = tuple(parts)
        self.order = Mixed([order_of(part) for part in parts], weights)
        self._ends = np.cumsum([len(part) for part in parts])
        told = [(getattr(part, "fingerprint", ""), float(weight)) for part, weight in zip(parts, weights, strict=True)]
        self.fingerprint = hashlib.sha256(repr(told).encode()).hexdigest()[:16]

    @property
    def block_size(self) -> int:
        """Tokens of the longest sample."""
        return max(int(part.block_size) for part in self.parts)

    @property
    def tokens_per_sample(self) -> float:
        """Mean length of a sample in an epoch."""
        lengths = [float(part.tokens_per_sample) for part in self.parts]
        return float(np.average(lengths, weights=self.order.counts))

    def tokens_of(self, indices: NDArray[np.int64]) -> int:
        """Tokens in these samples, without those that only fill up a batch."""
        which = np.searchsorted(self._ends, indices, side="right")
        begins = np.concatenate([[0], self._ends[:-1]])
        counts = 0
        for number, part in enumerate(self.parts):
            own = indices[which == number] - begins[number]
            counts += part.tokens_of(own) if hasattr(part, "tokens_of") else len(own) * part.block_size
        return int(counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Any:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[part][index - (int(self._ends[part - 1]) if part else 0)]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        return [self[index] for index in indices]

    def in_proportion(self) -> Subset[Any]:
        """One epoch of it in a fixed order, for evaluation: the first samples are mixed as all are."""
        return Subset(self, self.order.arrange(0, 0, shuffle=False).indices.tolist())
