"""Pushes beside the training, one after the other, in a thread of their own."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from morphing_trainer.errors import MorphError
from morphing_trainer.hub.failures import told
from morphing_trainer.hub.sending import Sent

_log = logging.getLogger("morphing_trainer")


class Outbox:
    """What waits to be pushed. The thread does not keep the process alive, and draws no random number.

    Attributes:
        failure: why the last push has failed; None if it has not.
    """

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self._waiting: deque[tuple[str, Callable[[], Sent]]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._has_warned = False

    @property
    def busy(self) -> bool:
        """Whether something is being pushed, or waits for it."""
        with self._changed:
            return self._thread is not None

    def add(self, what: str, push: Callable[[], Sent]) -> None:
        """Push when all before has been.

        Args:
            what: for the log: `step 200`.
        """
        with self._changed:
            self._waiting.append((what, push))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="push to the Hub", daemon=True)
                self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until all is pushed, or has failed; so long at most. Returns whether that has come."""
        end = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            while self._thread is not None:
                left = 3600.0 if end is None else end - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._thread = None
                    self._changed.notify_all()
                    return
                what, push = self._waiting.popleft()
            try:
                sent = push()
            except Exception as error:  # of any kind: the training must not know of it
                self.failure = error
                self._tell(what, error)
            else:
                self.failure, self._has_warned = None, False
                done = "pushed to" if sent.changed else "is as pushed before to"
                _log.info("%s: %s %s", what, done, sent.url)

    def _tell(self, what: str, error: Exception) -> None:
        level = logging.DEBUG if self._has_warned else logging.WARNING
        self._has_warned = True
        reason = str(error) if isinstance(error, MorphError) else told(error)
        again = "It is tried again at the next save and at the end."
        _log.log(level, "%s: not pushed to the Hub: %s. %s", what, reason.rstrip("."), again)
