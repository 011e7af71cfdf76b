"""How a rank that fails in the middle of a step tells the others why, and none waits for it in vain.

Inside a step the ranks meet only in the backward pass, where one that is missing cannot be told from one that is slow.
What has failed leaves a word in the store that the ranks found each other by, and closes its connections. That raises
an error in those that wait for it, and they look for the word. NCCL notices a closed connection late or never between
GPUs of one machine; there the launcher ends the others when the first has left.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch.distributed as dist

_log = logging.getLogger("morphing_trainer")
_WORD, _HEARD = "morphing_trainer/failed", "morphing_trainer/heard"
PATIENCE = 10.0
"""Seconds that a rank stays to be heard: others may have a long way to the point where they would wait for it."""


class Farewell:
    """The word of a rank that fails. Does nothing in a single process."""

    def __init__(self) -> None:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.world_size = dist.get_world_size() if several else 1
        self.rank = dist.get_rank() if several else 0
        self._store: Any = dist.distributed_c10d._get_default_store() if several else None

    def leave(self, reason: str, let_go: Callable[[], None]) -> None:
        """Say why this rank ends, close its connections, and stay until the others have heard it.

        Args:
            let_go: drop all that holds a process group; a connection closes with the last reference to it.
        """
        if self._store is None:
            return
        with suppress(RuntimeError):  # the store may be gone with another rank; nothing is lost then but the word
            self._store.set(f"{_WORD}/{self.rank}", reason)
        self.follow(let_go)

    def heard(self) -> str | None:
        """What another rank has left behind, if one has."""
        if self._store is None:
            return None
        with suppress(RuntimeError, IndexError):
            failed = [rank for rank in range(self.world_size) if self._store.check([f"{_WORD}/{rank}"])]
            return f"rank {failed[0]} failed, so all ranks stop: {self._store.get(f'{_WORD}/{failed[0]}').decode()}"
        return None

    def follow(self, let_go: Callable[[], None]) -> None:
        """Close the connections, on which others may wait, and stay: the store may live in this process."""
        let_go()
        gc.collect()
        # To end an NCCL group may wait for work that will never be done.
        if dist.is_initialized() and dist.get_backend() == "gloo":
            dist.destroy_process_group()
        end = time.monotonic() + PATIENCE
        with suppress(RuntimeError):
            heard = self._store.add(_HEARD, 1)
            while heard < self.world_size and time.monotonic() < end:
                time.sleep(0.05)
                heard = self._store.add(_HEARD, 0)
            if heard < self.world_size:
                _log.warning("rank %d leaves, and not all others have heard why in %g s", self.rank, PATIENCE)
