"""Parts of a measurement, in order of importance, within so many seconds."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from morphing_trainer.memory.failures import brief

Figures = dict[str, Any]
"""What was measured once: its `table`, and figures in SI units."""

AGAIN = 5.0
"""Seconds after which the alarm rings again: Python swallows what is raised while an object is being deleted."""


class OutOfTime(BaseException):
    """The budget is used up. No error, so that nothing on the way takes it for one that it can handle."""


@dataclass(frozen=True)
class Part:
    """Something to measure.

    Attributes:
        name: as the report calls it.
        seconds: what it roughly takes on an H100, compilation included.
        work: measures; gives figures as soon as it has them.
        like: name that parts have in common which take the same time.
        compiles: most of it, so that its time depends on the processor.
    """

    name: str
    seconds: float
    work: Callable[[], Iterable[Figures]]
    like: str = ""
    compiles: bool = False


@dataclass
class Account:
    """What has come of the parts. `left_out` and `failed` are sentences that begin with the name of the part."""

    figures: list[Figures] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    interrupted: bool = False


def carry_out(
    parts: Sequence[Part],
    seconds: float,
    tell: Callable[[str], None],
    after: Callable[[Account], None],
    clock: Callable[[], float] = time.monotonic,
) -> Account:
    """Measure what fits into `seconds`, one part after the other.

    A part that is not expected to fit is left out, and smaller ones behind it have their turn. A machine that is slower
    than the estimates is noticed: they are stretched by what has been seen. One that is not through when the time is
    over is cut off there; Ctrl+C ends everything. What has been measured by then is kept.

    Args:
        tell: is told what happens.
        after: is called after each part, with the account so far.
        clock: seconds since whenever.
    """
    account = Account()
    took: dict[str, float] = {}
    spent, expected = {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}
    began = clock()
    for index, part in enumerate(parts):
        now = clock() - began
        kind = part.like or part.name
        pace = spent[part.compiles] / expected[part.compiles] if expected[part.compiles] else 1.0
        needs = took.get(kind, part.seconds * max(1.0, pace))
        if now + needs > seconds:
            reason = f"takes about {needs:.0f} s, {max(0.0, seconds - now):.0f} s of {seconds:.0f} s were left"
            account.left_out.append(f"{part.name}: {reason}")
            tell(f"left out: {account.left_out[-1]}")
            continue
        tell(f"[{now:3.0f} s of {seconds:.0f} s] {part.name} (about {needs:.0f} s)")
        try:
            with _alarm(seconds - now):
                for figures in part.work():
                    account.figures.append(figures)
        except OutOfTime:
            account.failed.append(f"{part.name}: was cut off when the time was over")
        except (KeyboardInterrupt, SystemExit):
            account.left_out.append(f"{part.name}: was interrupted")
            account.interrupted = True
        except Exception as error:  # of any kind: the other parts have nothing to do with it
            account.failed.append(f"{part.name}: {brief(error)}")
        if account.interrupted:
            account.left_out += [f"{later.name}: interrupted before" for later in parts[index + 1 :]]
        after(account)
        if account.interrupted:
            break
        took[kind] = clock() - began - now
        spent[part.compiles] += took[kind]
        expected[part.compiles] += part.seconds
    return account


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in the block when the time is over, where the system can do that."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(signum: int, frame: object) -> None:
        raise OutOfTime

    handler = signal.signal(signal.SIGALRM, ring)
    timer = signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01), AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)  # of whoever waits besides
