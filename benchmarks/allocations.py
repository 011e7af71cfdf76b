"""Bytes that torch's allocator has handed out and not taken back, by stretch of a run."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile, record_function

_MARK = "allocations: "


@dataclass(frozen=True)
class Span:
    """Bytes that torch's allocator had handed out.

    Attributes:
        before, peak, after: at the beginning of a stretch of the run, at most, and at its end.
    """

    before: int
    peak: int
    after: int


class Meter:
    """Bytes by stretch of a run: `mark(name)` ends the stretch of that name, which began at the mark before.

    Attributes:
        spans: by name, once `measuring` is over; of stretches with one name the last.
    """

    def __init__(self) -> None:
        self.spans: dict[str, Span] = {}
        self._on_gpu = torch.cuda.is_available()
        self._before = 0

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        if self._on_gpu:
            yield
            return
        gc.collect()  # what is freed from now on has been counted
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            yield
        assert found.profiler is not None and found.profiler.kineto_results is not None
        self.spans = spans([(e.start_ns(), e.name(), e.nbytes()) for e in found.profiler.kineto_results.events()])

    def mark(self, name: str) -> None:
        if not self._on_gpu:
            with record_function(_MARK + name):
                return
        torch.cuda.synchronize()
        now = torch.cuda.memory_allocated()
        self.spans[name] = Span(self._before, torch.cuda.max_memory_allocated(), now)
        self._before = now
        torch.cuda.reset_peak_memory_stats()


def spans(events: Sequence[tuple[int, str, int]]) -> dict[str, Span]:
    """Stretches between marks, from a profiler's events: time, name, and the bytes that were allocated or freed."""
    found, before, now, peak = {}, 0, 0, 0
    for _, name, size in sorted(events, key=lambda event: event[0]):
        if name == "[memory]":
            now += size
            peak = max(peak, now)
        elif name.startswith(_MARK):
            found[name.removeprefix(_MARK)] = Span(before, peak, now)
            before = peak = now
    return found
