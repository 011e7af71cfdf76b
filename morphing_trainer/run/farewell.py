"""How a rank that fails tells the others why, and none waits for it in vain.

Inside a step the ranks meet only in the backward pass, where one that is missing cannot be told from one that is slow.
What has failed leaves a word in the store that the ranks found each other by, and closes its connections. That raises
an error in those that wait for it, and they look for the word. A rank that was killed leaves none, but its connections
close too. NCCL notices a closed connection late or never between GPUs of one machine; there the launcher ends the
others when the first has left.
"""

from __future__ import annotations

import gc
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch.distributed as dist

from morphing_trainer.errors import MorphError
from morphing_trainer.memory.failures import is_out_of_memory
from morphing_trainer.run.consensus import Consensus, RankError

_log = logging.getLogger("morphing_trainer")
_WORD, _HEARD = "morphing_trainer/failed", "morphing_trainer/heard"
_TOLD = "morphing_trainer/told"
PATIENCE = 10.0
"""Seconds that a rank stays to be heard: others may have a long way to the point where they would wait for it."""
BRIEFLY = 1.0
"""The same where one of the others is gone already, or somebody is waiting for this one to go."""
_CLOSED = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection was likely closed")
"""What gloo says in a RuntimeError when a connection is no more."""
LOST = (
    "a connection to another rank was lost, and it said nothing: it was killed (for want of memory, perhaps) or its "
    "machine failed. Its own log may tell more; resume from the last checkpoint"
)


class Farewell:
    """The word of a rank that fails. Does nothing in a single process."""

    def __init__(self) -> None:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.world_size = dist.get_world_size() if several else 1
        self.rank = dist.get_rank() if several else 0
        self._store: Any = dist.distributed_c10d._get_default_store() if several else None

    def part(self, error: BaseException, let_go: Callable[[], None]) -> RankError | None:
        """Leave the others for `error`: close the connections, having told them why, or heard it from them.

        Args:
            let_go: drop all that holds a process group; a connection closes with the last reference to it.

        Returns:
            What to raise in the place of `error` if another rank is the reason for it.
        """
        if self._store is None:
            return None
        told = self.heard() if isinstance(error, RuntimeError) and not is_out_of_memory(error) else None
        lost = told is None and is_lost(error)
        word = LOST if lost else reason(error)
        _forget(error)
        if told is None:
            with suppress(RuntimeError):  # the store may be gone with another rank; nothing is lost then but the word
                self._store.set(f"{_WORD}/{self.rank}", word)
        self._close(let_go, BRIEFLY if lost or isinstance(error, KeyboardInterrupt) else PATIENCE)
        return RankError(told or f"rank {self.rank} stops: {word}.") if told or lost else None

    def heard(self) -> str | None:
        """What another rank has left behind, if one has."""
        if self._store is None:
            return None
        with suppress(RuntimeError, IndexError):
            failed = [rank for rank in range(self.world_size) if self._store.check([f"{_WORD}/{rank}"])]
            return f"rank {failed[0]} failed, so all ranks stop: {self._store.get(f'{_WORD}/{failed[0]}').decode()}"
        return None

    def _close(self, let_go: Callable[[], None], patience: float) -> None:
        """Close the connections, on which others may wait, and stay: the store may live in this process."""
        let_go()
        gc.collect()
        # To end an NCCL group may wait for work that will never be done.
        if dist.is_initialized() and dist.get_backend() == "gloo":
            dist.destroy_process_group()
        end = time.monotonic() + patience
        with suppress(RuntimeError):
            heard = self._store.add(_HEARD, 1)
            while heard < self.world_size and time.monotonic() < end:
                time.sleep(0.05)
                heard = self._store.add(_HEARD, 0)
            if heard < self.world_size and patience == PATIENCE:
                _log.warning("rank %d leaves, and not all others have heard why in %g s", self.rank, PATIENCE)


def last_word(seconds: float = 30.0) -> None:
    """Let the others leave after rank 0 has said why all do: launchers end what still runs when one has failed.

    Rank 0 calls it when it has told, and has written its report; the others wait for that. Nothing to do in a single
    process, or where the process group is no more.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    with suppress(RuntimeError):  # the store went with another rank
        store = dist.distributed_c10d._get_default_store()
        if dist.get_rank() == 0:
            store.set(_TOLD, "")
            return
        end = time.monotonic() + seconds
        while not store.check([_TOLD]) and time.monotonic() < end:
            time.sleep(0.05)


@contextmanager
def together(consensus: Consensus, let_go: Callable[[], None]) -> Iterator[None]:
    """Let all ranks come to the end of the block, or none: whatever a rank raises in it ends the others too.

    Args:
        let_go: see `Farewell.part`.

    Raises:
        RankError: if another rank is the reason, with what it said.
    """
    farewell = Farewell()
    try:
        yield
        consensus.settle(None)  # another one may be failing in what this one has just finished
    except BaseException as error:
        # Where all have raised together, the connections are in order.
        if raised_together(error, consensus):
            raise
        told = farewell.part(error, let_go)
        if told is None:
            raise
        raise told from error


def raised_together(error: BaseException | None, consensus: Consensus) -> bool:
    """Whether all ranks raise, this one `error`."""
    return any(each is consensus.known for each in _chain(error))


def reason(error: BaseException) -> str:
    """What an error is, for other ranks."""
    if isinstance(error, MorphError):  # says what it is by itself
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def is_lost(error: BaseException) -> bool:
    """Whether an error says that a connection to another rank is gone."""
    if isinstance(error, RankError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in _CLOSED)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _forget(error: BaseException) -> None:
    """Drop the local variables of the frames that an error went through, which hold tensors and connections.

    What a traceback shows stays.
    """
    for each in _chain(error):
        traceback.clear_frames(each.__traceback__)
