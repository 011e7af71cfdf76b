"""The Hub's client beside a training: no progress bars, no log of every retry, and an end to its waiting."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import get_session
from huggingface_hub import utils as hub_utils
from huggingface_hub.utils import logging as hub_logging

SILENCE = 300.0
"""Seconds after which a Hub that says nothing is given up. The client itself would wait for ever."""

_lock = threading.Lock()
_inside = 0
_before: tuple[int, bool] = (logging.WARNING, False)


@contextmanager
def patient(seconds: float = SILENCE, *, shows: bool = False) -> Iterator[None]:
    """A block that uses the client: quietly, and with an end to its patience. Threads may be in it together.

    Args:
        shows: leave its progress bars as they are.
    """
    global _inside, _before
    with _lock:
        _inside += 1
        if _inside == 1:
            _before = hub_logging.get_verbosity(), bool(hub_utils.are_progress_bars_disabled())  # type: ignore[attr-defined]
            hub_logging.set_verbosity(logging.CRITICAL)
            if not (_before[1] or shows):
                hub_utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        session = get_session()
        if session.timeout.read is None:
            session.timeout = seconds
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                hub_logging.set_verbosity(_before[0])
                if not _before[1]:
                    hub_utils.enable_progress_bars()  # type: ignore[attr-defined]
