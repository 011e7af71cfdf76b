"""How the rest of an epoch is divided into optimizer steps, and those into micro-batches."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray


class Layout:
    """Positions `position` to `length` of an epoch's order, in steps of `step_size` samples.

    A step is read in micro-batches of `global_size` samples, all ranks together; its last one may be smaller, and so
    may the last step be.

    Args:
        drop_last: leave out a last micro-batch that is smaller than the others because the epoch ends.
        begins: ascending positions at which a text begins, where texts go on over several samples. What is left of a
            text at the end of a step is then left out: the model must not profit from an update half-way through it.
    """

    def __init__(
        self,
        length: int,
        position: int,
        step_size: int,
        global_size: int,
        drop_last: bool = False,
        begins: NDArray[np.int64] | None = None,
    ) -> None:
        assert step_size >= 1
        assert global_size >= 1
        assert 0 <= position <= length
        self.length, self.position = length, position
        self.step_size, self.global_size = step_size, global_size
        self.per_step = -(-step_size // global_size)
        """Micro-batches of a full step."""
        self._steps = None if begins is None else _step_begins(begins, length, position, step_size)
        if self._steps is None:
            full, last = divmod(length - position, step_size)
        else:
            last = length - self._steps[-1] if self._steps else 0
            full = len(self._steps) - (last < step_size if self._steps else 0)
            last = last if last < step_size else 0
        self._count = full * self.per_step + (last // global_size if drop_last else -(-last // global_size))

    def __len__(self) -> int:
        """Micro-batches."""
        return self._count

    def steps_before(self, position: int) -> int:
        """Optimizer steps that begin before `position` of the epoch."""
        if self._steps is None:
            return min(self.steps, max(0, -(-(position - self.position) // self.step_size)))
        return min(self.steps, bisect_left(self._steps, position))

    @property
    def steps(self) -> int:
        """Optimizer steps; a last, smaller one counts."""
        return -(-self._count // self.per_step)

    @property
    def samples(self) -> int:
        """Samples read in all micro-batches."""
        if not self._count:
            return 0
        full, part = divmod(self._count, self.per_step)
        begin = self._begin(full)
        last = min(part * self.global_size, self.length - begin) if part else 0
        return full * self.step_size + last

    def span(self, number: int) -> tuple[int, int]:
        """First position of micro-batch `number`, and the one behind its last."""
        step, part = divmod(number, self.per_step)
        begin = self._begin(step)
        start = begin + part * self.global_size
        return start, min(start + self.global_size, begin + self.step_size, self.length)

    def samples_in(self, first: int, count: int) -> int:
        """Samples in micro-batches [first, first + count), as far as there are such."""
        spans = (self.span(number) for number in range(first, min(first + count, len(self))))
        return sum(end - start for start, end in spans)

    def position_after(self, count: int) -> int:
        """Where the epoch stands when `count` micro-batches have been read, and what is left out behind them."""
        if count == 0:
            return self.position
        step, part = divmod(count, self.per_step)
        if self._steps is None or part:
            return self.span(count - 1)[1]
        return self._begin(step)

    def _begin(self, step: int) -> int:
        if self._steps is None:
            return self.position + step * self.step_size
        return self._steps[step] if step < len(self._steps) else self.length


def _step_begins(begins: NDArray[np.int64], length: int, position: int, step_size: int) -> list[int]:
    """The first position of every step: a text's beginning."""
    following = np.append(begins, length)
    # For every position, the next one at which a text begins. A plain list, because it is read one by one.
    next_text = following[np.searchsorted(following, np.arange(position, length + 1))].tolist()
    at, steps = next_text[0], []
    while at < length:
        steps.append(at)
        at = next_text[min(at + step_size, length) - position]
    return steps
