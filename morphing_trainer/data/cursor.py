"""A position in the seeded order of the data, and the sampler that reads on from there.

Loaders fetch ahead, so what a loader has handed out says nothing about what was trained on. The position is therefore
kept here, moved only by `Cursor.advance_to`, and a run stopped anywhere goes on with the next sample in O(1) batches.

Terms: a *global micro-batch* is what all ranks read at once, `world_size * batch_size` consecutive positions; a
*segment* is a stretch of an epoch read with one batch size, from the cursor's position to the end of the epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import Sampler

from morphing_trainer.data.layout import Layout
from morphing_trainer.data.orders import Arranged, Order, Single
from morphing_trainer.errors import CheckpointError, DataError

PLACEHOLDER = -1
"""The index that a rank reads when the last micro-batch has no sample for it."""


@dataclass(frozen=True)
class Batch:
    """How many samples are read at once.

    Attributes:
        size: samples per rank and micro-batch.
        step_size: samples per optimizer step, all ranks together.
    """

    size: int
    step_size: int
    world_size: int = 1
    drop_last: bool = False

    @property
    def global_size(self) -> int:
        """Samples in a complete micro-batch of all ranks."""
        return self.size * self.world_size


@dataclass
class Cursor:
    """Which samples of a data set of `length` samples have been trained on (or left out, see `Layout`).

    Attributes:
        length: samples in an epoch.
        seed: of the shuffle.
        shuffle: whether each epoch has an order of its own; without it all have the order of the data set.
        epoch: epochs completed.
        position: samples of this epoch that are behind the run, by all ranks together.
        arrangement: how an epoch is arranged; None: sample by sample.

    Raises:
        DataError: if there are no samples.
    """

    length: int
    seed: int
    shuffle: bool = True
    epoch: int = 0
    position: int = 0
    arrangement: Order | None = field(default=None, repr=False, compare=False)
    _arranged: tuple[int, Arranged] | None = field(default=None, init=False, repr=False, compare=False)

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

    @property
    def arranged(self) -> Arranged:
        """This epoch's indices in the order they are read, and where texts begin; do not change them."""
        if self._arranged is None or self._arranged[0] != self.epoch:
            self._arranged = (self.epoch, self.arrange(self.epoch))
        return self._arranged[1]

    def arrange(self, epoch: int) -> Arranged:
        """The order of any epoch."""
        return (self.arrangement or Single(self.length)).arrange(self.seed, epoch, self.shuffle)

    @property
    def epochs_differ(self) -> bool:
        """Whether epochs may differ in their number of steps, because texts are cut off at other places."""
        return self.arrangement is not None and self.arranged.begins is not None

    def layout(self, batch: Batch, epoch: int | None = None) -> Layout:
        """What is left of this epoch, or all of `epoch`, in steps and micro-batches."""
        begins = None
        if self.arrangement is not None:  # else it need not be arranged to be counted
            begins = (self.arranged if epoch in (None, self.epoch) else self.arrange(epoch or 0)).begins
        position = self.position if epoch is None else 0
        return Layout(self.length, position, batch.step_size, batch.global_size, batch.drop_last, begins)

    def advance_to(self, position: int) -> None:
        """Count the samples up to `position` as behind the run."""
        assert self.position <= position <= self.length, f"from {self.position} to {position} of {self.length}"
        self.position = position

    def next_epoch(self) -> None:
        """Go to the start of the next epoch; what `drop_last` left over stays out."""
        self.epoch += 1
        self.position = 0

    def state(self) -> dict[str, int | bool]:
        """All there is to know, as plain JSON."""
        names = ("length", "seed", "shuffle", "epoch", "position")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], length: int, arrangement: Order | None = None) -> Cursor:
        """The cursor that `state()` describes, for a data set that has `length` samples now, arranged in this way.

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
        return cls(length, state["seed"], state["shuffle"], state["epoch"], state["position"], arrangement)


def share_of(span: tuple[int, int], world_size: int, rank: int) -> range:
    """The positions of a global micro-batch that `rank` reads: as even as can be, in order, perhaps none."""
    start, end = span
    share, extra = divmod(end - start, world_size)
    mine = start + rank * share + min(rank, extra)
    return range(mine, mine + share + (rank < extra))


class CursorBatchSampler(Sampler[list[int]]):
    """This rank's batches of indices, from where `cursor` stands when iteration starts to the end of its epoch.

    It shards by itself: do not let accelerate shard it again (`prepare_data_loader(..., num_processes=1)`).
    With more than one rank an index may be `PLACEHOLDER`: see `WithPlaceholder` and `masked_collate`.
    """

    def __init__(self, cursor: Cursor, batch: Batch, rank: int = 0) -> None:
        super().__init__()
        assert batch.size >= 1
        assert 0 <= rank < batch.world_size
        self.cursor = cursor
        self.batch = batch
        self.rank = rank
        self._laid_out = (cursor.epoch, cursor.position)
        self.layout = cursor.layout(batch)
        """Of the segment: from where the cursor stood when iteration started."""

    def __len__(self) -> int:
        """Micro-batches left in the epoch, from where the cursor stands now."""
        if self._laid_out == (self.cursor.epoch, self.cursor.position):
            return len(self.layout)
        return len(self.cursor.layout(self.batch))

    def __iter__(self) -> Iterator[list[int]]:
        # Not a generator itself: the segment starts here and now, not when the loader asks for its first batch.
        here = (self.cursor.epoch, self.cursor.position)
        if self._laid_out != here:
            self._laid_out, self.layout = here, self.cursor.layout(self.batch)
        return self._batches(self.layout)

    def share(self, number: int) -> range:
        """The positions that this rank reads as micro-batch `number` of the segment; empty for a placeholder."""
        return share_of(self.layout.span(number), self.batch.world_size, self.rank)

    def _batches(self, layout: Layout) -> Iterator[list[int]]:
        indices = self.cursor.arranged.indices
        for number in range(len(layout)):
            share = share_of(layout.span(number), self.batch.world_size, self.rank)
            yield indices[share.start : share.stop].tolist() or [PLACEHOLDER]
