"""Agreement between ranks: rank 0 decides, everybody acts on it at the same step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


class RankError(RuntimeError):
    """Another rank failed."""


class Agreed(NamedTuple):
    """What all ranks know after an exchange."""

    stop: bool
    decision: str | None
    tokens: int
    pressed: bool = False
    written: bool = False
    bad: int = 0


class Consensus:
    """One small exchange per optimizer step, over gloo so that no accelerator waits for it; free on one process."""

    def __init__(self) -> None:
        self.world_size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        self._group = dist.new_group(backend="gloo") if self.world_size > 1 else None
        self.known: BaseException | None = None
        """The failure that all ranks have been told of."""

    def exchange(
        self,
        stop: bool,
        decision: str | None,
        tokens: int,
        pressed: bool = False,
        written: bool = False,
        bad: int = 0,
    ) -> Agreed:
        """Whether any rank wants to stop, what rank 0 decided, the sum of all tokens, and whether memory is short.

        Args:
            stop: this rank was asked to stop.
            decision: what rank 0 decided; ignored on other ranks.
            tokens: tokens that this rank trained on since the last exchange.
            pressed: memory has become short for this rank.
            written: a checkpoint is being written, and this rank has done its part of it; agreed on when all have.
            bad: what of the last step was not finite on this rank, see `run.finite`; added up over the ranks.
        """
        if self._group is None:
            return Agreed(stop, decision, tokens, pressed, written, bad)
        has_decided = decision is not None and dist.get_rank() == 0
        sums = torch.tensor([int(stop), int(has_decided), tokens, int(pressed), int(written), bad], dtype=torch.int64)
        dist.all_reduce(sums, group=self._group)
        agreed = self.shared(decision) if sums[1] else None
        return Agreed(bool(sums[0]), agreed, int(sums[2]), bool(sums[3]), int(sums[4]) == self.world_size, int(sums[5]))

    def gathered(self, figures: Sequence[float]) -> list[list[float]]:
        """Everybody's figures, (ranks, figures); every rank has as many."""
        mine = torch.tensor(figures, dtype=torch.float64)
        if self._group is None:
            return [mine.tolist()]
        everyone = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(everyone, mine, group=self._group)
        return [found.tolist() for found in everyone]

    def largest(self, figures: Sequence[float]) -> list[float]:
        """The largest of each figure over all ranks."""
        return [max(column) for column in zip(*self.gathered(figures), strict=True)]

    def loss(self, value: float) -> float:
        """Rank 0's evaluation loss, so that all ranks remember the same bits."""
        if self._group is None:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, src=0, group=self._group)
        return float(shared)

    def union(self, names: Sequence[str]) -> list[str]:
        """What any rank has found, in the order of the ranks."""
        if self._group is None or not self._any(bool(names)):
            return list(names)
        everyone: list[list[str]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(everyone, list(names), group=self._group)
        return list(dict.fromkeys(name for found in everyone for name in found))

    def _any(self, holds: bool) -> bool:
        flag = torch.tensor([int(holds)])
        dist.all_reduce(flag, group=self._group)
        return bool(flag)

    def settle(self, failure: BaseException | None) -> None:
        """End a piece of work that every rank has tried: all go on, or all raise.

        Args:
            failure: what this rank's attempt raised.

        Raises:
            failure: on a rank that failed; `RankError` on those that did not, with what another one said.
        """
        if self._group is not None and self._any(failure is not None):
            said = self.texts(None if failure is None else f"{type(failure).__name__}: {failure}")
            if failure is None:
                rank = next(rank for rank, text in enumerate(said) if text)
                failure = RankError(f"rank {rank} failed, so all ranks stop: {said[rank]}")
        if failure is not None:
            self.all_know(failure)
            raise failure

    def texts(self, mine: str | None) -> list[Any]:
        """What each rank says."""
        said: list[str | None] = [mine] * self.world_size
        if self._group is not None:
            dist.all_gather_object(said, mine, group=self._group)
        return said

    def all_know(self, error: BaseException) -> None:
        """Note that every rank raises, this one `error`: none waits for another because of it."""
        self.known = error

    def collected(self, mine: T) -> list[T] | None:
        """What every rank has, on rank 0; None on the others."""
        if self._group is None:
            return [mine]
        everyone: list[Any] | None = [None] * self.world_size if dist.get_rank() == 0 else None
        dist.gather_object(mine, everyone, group=self._group)
        return everyone

    def close(self) -> None:
        """Agree with nobody from here on: the run ends."""
        self._group = None

    def barrier(self) -> None:
        if self._group is not None:
            dist.barrier(group=self._group)

    def shared(self, text: str | None) -> str:
        """Rank 0's text, on every rank."""
        box: list[str | None] = [text]
        if self._group is not None:
            dist.broadcast_object_list(box, src=0, group=self._group)
        assert box[0] is not None
        return box[0]
