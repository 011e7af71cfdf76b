"""One piece of work at a time in a thread beside the training."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Runs one piece of work in a thread. It must use no process group: other ranks may be anywhere.

    The thread does not keep the process alive: who must leave at once (a second Ctrl+C) leaves the work undone.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin; the piece before must have been waited for."""
        assert self._thread is None, "one at a time"
        self._failure = None

        def run() -> None:
            try:
                work()
            except BaseException as error:  # of any kind: it is raised where the work is waited for
                self._failure = error

        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether work is going on."""
        return self._thread is not None and self._thread.is_alive()

    def afterwards(self, action: Callable[[], None]) -> None:
        """Do `action` when no work is going on: at once, if there is none."""
        thread = self._thread
        if thread is None or not thread.is_alive():
            action()
            return

        def follow() -> None:
            thread.join()
            action()

        threading.Thread(target=follow, name="after the checkpoint", daemon=True).start()

    def wait(self) -> BaseException | None:
        """Wait for the work, if there is any. Returns what it raised; once, as the work is forgotten with it."""
        if self._thread is not None:
            self._thread.join()
        self._thread, failure = None, self._failure
        self._failure = None
        return failure
