"""Ctrl+C and SIGTERM: finish the step, save, leave with the conventional exit code; a second one leaves at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class RunInterrupted(SystemExit):
    """The run was asked to stop and has saved (a dead model: has not, `checkpoint` is None).

    Uncaught, the process ends with code 128 + signal number.
    """

    def __init__(self, signum: int, checkpoint: str | None) -> None:
        self.signum = signum
        self.checkpoint = checkpoint
        super().__init__(128 + signum)

    def __str__(self) -> str:
        return f"{signal.Signals(self.signum).name} received; saved {self.checkpoint or 'nothing'}"


class StopRequest:
    """Remembers the first signal; the second is handled as if nobody had caught it.

    A process may have been started with SIGINT ignored: a shell script does that to what it runs in the background. As
    the first one is heard all the same, so is the second: it gets Python's default handling.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, object] = {}

    @property
    def name(self) -> str:
        """Of the signal; SIGTERM if only another rank has got one."""
        return signal.Signals(self.signum or signal.SIGTERM).name

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Listen while the block runs. Python delivers signals to the main thread only; elsewhere this does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        self._before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
        for signum in self._before:
            signal.signal(signum, self._received)
        try:
            yield self
        finally:
            self._restore()

    def _received(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum = signum
            return
        self._restore()
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
        signal.raise_signal(signum)

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]  # what getsignal returned
