"""The order of the data as a seeded permutation and a position in it.

Loaders fetch ahead, so what a loader has handed out says nothing about what was trained on. The position is therefore
kept here, moved only by `Cursor.advance`, and a run stopped anywhere goes on with the next sample in O(1) batches.

Terms: a *global micro-batch* is what all ranks read at once, `world_size * batch_size` consecutive positions; a
*segment* is a stretch of an epoch read with one batch size, from the cursor's position to the end of the epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import Sampler

from morphing_trainer.errors import CheckpointError, DataError

PLACEHOLDER = -1
"""The index that a rank reads when the last micro-batch has no sample for it."""


def permutation(length: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of `epoch`, (length,) int64: the one of accelerate's `SeedableRandomSampler(data_seed=seed)`."""
    generator = torch.Generator().manual_seed(seed + epoch)
    return torch.randperm(length, generator=generator, device="cpu")


@dataclass
class Cursor:
    """Which samples of a data set of `length` samples have been trained on.

    Attributes:
        length: samples in an epoch.
        seed: of the shuffle.
        shuffle: whether each epoch has an order of its own; without it all have the order of the data set.
        epoch: epochs completed.
        position: samples of this epoch that have been trained on, by all ranks together.

    Raises:
        DataError: if there are no samples.
    """

    length: int
    seed: int
    shuffle: bool = True
    epoch: int = 0
    position: int = 0
    _order: tuple[int, torch.Tensor] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.length < 1:
            raise DataError("training data: has no samples. Give a data set with at least one.")
        assert 0 <= self.position <= self.length, f"impossible {self}"

    @property
    def remaining(self) -> int:
        """Samples of this epoch not yet trained on."""
        return self.length - self.position

    @property
    def fraction(self) -> float:
        """Epochs trained, with their fraction."""
        return self.epoch + self.position / self.length

    def order(self) -> torch.Tensor:
        """The indices of this epoch in the order they are read, (length,) int64; do not change it."""
        if self._order is None or self._order[0] != self.epoch:
            indices = (
                permutation(self.length, self.seed, self.epoch)
                if self.shuffle
                else torch.arange(self.length, device="cpu")
            )
            self._order = (self.epoch, indices)
        return self._order[1]

    def advance(self, samples: int) -> None:
        """Count `samples` more as trained on."""
        assert 0 <= samples <= self.remaining, f"{samples} samples trained on, but {self.remaining} were left"
        self.position += samples

    def next_epoch(self) -> None:
        """Go to the start of the next epoch; what `drop_last` left over stays out."""
        self.epoch += 1
        self.position = 0

    def state(self) -> dict[str, int | bool]:
        """All there is to know, as plain JSON."""
        names = ("length", "seed", "shuffle", "epoch", "position")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], length: int) -> Cursor:
        """The cursor that `state()` describes, for a data set that has `length` samples now.

        Raises:
            CheckpointError: if the state is malformed, or the data set has another length than it had.
        """
        where = "checkpoint, data cursor"
        for name in ("length", "seed", "epoch", "position"):
            if type(state.get(name)) is not int:  # bool is an int to isinstance
                raise CheckpointError(f"{where}: {name!r} must be a whole number, is {state.get(name)!r}.")
        if type(state.get("shuffle")) is not bool:
            raise CheckpointError(f"{where}: 'shuffle' must be true or false, is {state.get('shuffle')!r}.")
        if state["length"] != length:
            raise CheckpointError(
                f"{where}: the run was trained on {state['length']} samples per epoch, but the data set now has "
                f"{length}, so its order is another one. Resume with the same data, tokenizer and block_size."
            )
        if state["epoch"] < 0 or not 0 <= state["position"] <= length:
            raise CheckpointError(
                f"{where}: epoch {state['epoch']}, position {state['position']} is not within {length} samples."
            )
        return cls(length, state["seed"], state["shuffle"], state["epoch"], state["position"])


def samples_read(remaining: int, global_size: int, drop_last: bool) -> int:
    """How many of `remaining` samples are read in global micro-batches of `global_size`."""
    return remaining - remaining % global_size if drop_last else remaining


def micro_batches(
    length: int, position: int, batch_size: int, world_size: int = 1, rank: int = 0, drop_last: bool = False
) -> Iterator[range]:
    """The positions of the order that `rank` reads, micro-batch by micro-batch, from `position` to the epoch's end.

    Every rank gets the same number of micro-batches. The last one, if incomplete, is shared out as evenly as can be,
    in order; a rank for which nothing is left gets an empty range.
    """
    assert batch_size >= 1
    assert 0 <= rank < world_size
    assert 0 <= position <= length
    global_size = world_size * batch_size
    end = position + samples_read(length - position, global_size, drop_last)
    for start in range(position, end, global_size):
        share, extra = divmod(min(global_size, end - start), world_size)
        mine = start + rank * share + min(rank, extra)
        yield range(mine, mine + share + (rank < extra))


class CursorBatchSampler(Sampler[list[int]]):
    """This rank's batches of indices, from where `cursor` stands when iteration starts to the end of its epoch.

    It shards by itself: do not let accelerate shard it again (`prepare_data_loader(..., num_processes=1)`).
    With more than one rank an index may be `PLACEHOLDER`: see `WithPlaceholder` and `masked_collate`.
    """

    def __init__(
        self, cursor: Cursor, batch_size: int, world_size: int = 1, rank: int = 0, drop_last: bool = False
    ) -> None:
        super().__init__()
        assert batch_size >= 1
        assert 0 <= rank < world_size
        self.cursor = cursor
        self.batch_size = batch_size
        self.world_size = world_size
        self.rank = rank
        self.drop_last = drop_last
        self._start = cursor.position

    @property
    def global_size(self) -> int:
        """Samples in a complete micro-batch of all ranks."""
        return self.world_size * self.batch_size

    def __len__(self) -> int:
        """Micro-batches left in the epoch, from where the cursor stands now."""
        left = samples_read(self.cursor.remaining, self.global_size, self.drop_last)
        return -(-left // self.global_size)

    def __iter__(self) -> Iterator[list[int]]:
        # Not a generator itself: the segment starts here and now, not when the loader asks for its first batch.
        self._start = self.cursor.position
        return self._batches(self.cursor.order(), self._start)

    def _batches(self, order: torch.Tensor, start: int) -> Iterator[list[int]]:
        length, indices = self.cursor.length, order.numpy()  # slicing an array is cheaper than slicing a tensor
        for share in micro_batches(length, start, self.batch_size, self.world_size, self.rank, self.drop_last):
            yield indices[share.start : share.stop].tolist() or [PLACEHOLDER]

    def samples_in(self, first_batch: int, count: int) -> int:
        """Samples that all ranks together read in micro-batches [first_batch, first_batch + count) of this segment.

        This is what to `advance` the cursor by; placeholders do not count.
        """
        left = samples_read(self.cursor.length - self._start, self.global_size, self.drop_last)
        return min(left, (first_batch + count) * self.global_size) - min(left, first_batch * self.global_size)
