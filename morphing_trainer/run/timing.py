"""Where the time of a run goes: host timers at the hooks that the loop has anyway. No call waits for the device.

On a GPU, work is only queued by the host, so a timer says where the host *waited*, not where the device worked: time of
forward and backward may show up in "optimizer" (gradient clipping reads a norm) or "other" (a log reads the loss).
The sum is the wall time either way, and long parts (evaluation, saving, data that come too late) are told reliably.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from morphing_trainer.errors import CheckpointError
from morphing_trainer.reporting.times import PARTS

Profile = dict[str, float]
"""Part -> seconds, all parts present."""


class Stopwatch:
    """Charges every moment to exactly one part. Parts nest: an evaluation inside a morph counts as evaluation.

    Args:
        before: seconds by part, of the run before a restart.
        now: the clock, in seconds.
    """

    def __init__(self, before: Mapping[str, float] | None = None, now: Callable[[], float] = time.perf_counter) -> None:
        self._seconds: Profile = {**dict.fromkeys(PARTS, 0.0), **(before or {})}
        self._now = now
        self._since = now()
        self._parts = ["other"]

    def _charge(self) -> None:
        moment = self._now()
        self._seconds[self._parts[-1]] += moment - self._since
        self._since = moment

    def at(self, part: str) -> None:
        """What happens from here on is `part`, until the next `at`."""
        self._charge()
        self._parts[-1] = part

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """The block is `part`; afterwards goes on what went on before."""
        self._charge()
        self._parts.append(part)
        depth = len(self._parts)
        try:
            yield
        finally:
            self._charge()
            del self._parts[depth - 1 :]

    def profile(self) -> Profile:
        """Seconds by part until now."""
        self._charge()
        return dict(self._seconds)


class StepTimer(TrainerCallback):
    """Tells the stopwatch what the loop is at. `stopwatch` gives that of the run in progress, None outside of one."""

    def __init__(self, stopwatch: Callable[[], Stopwatch | None]) -> None:
        self._stopwatch = stopwatch

    def _at(self, part: str) -> None:
        if (stopwatch := self._stopwatch()) is not None:
            stopwatch.at(part)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._at("forward/backward")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._at("optimizer")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._at("other")


def read_profile(data: Any) -> Profile:
    """A profile from plain data.

    Raises:
        CheckpointError: if it is malformed.
    """
    try:
        found = {str(part): float(seconds) for part, seconds in data.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"timing: is not one that this library wrote ({error!r})") from error
    return {part: found.get(part, 0.0) for part in PARTS}
