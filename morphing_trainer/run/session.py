"""One run in progress: what counts its steps and asks its schedule. No model, no loop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from morphing_trainer.data.cursor import CursorBatchSampler
from morphing_trainer.reporting.records import Upcoming
from morphing_trainer.run.consensus import Consensus
from morphing_trainer.run.signals import StopRequest
from morphing_trainer.run.state import RunState
from morphing_trainer.schedule import Schedule


class Session:
    """Counts samples, tokens and time, and finds out when an operation is due, on all ranks alike.

    `state.position.pending` holds the reason once one is; the trainer then ends its segment and applies it.
    """

    def __init__(self, schedule: Schedule, state: RunState) -> None:
        self.schedule = schedule
        self.state = state
        self.consensus = Consensus()
        self.stop = StopRequest()
        self.stopping = False
        self.listening = True
        """Whether evaluations count; not during a re-evaluation that only shows what an operation did."""
        self.saves = True
        """Whether the last checkpoint that was due has been saved; a dead model's is not."""
        self._sampler: CursorBatchSampler | None = None
        self._batches = self._fetched = self._samples = self._tokens = 0
        self._resumed_at = time.perf_counter()
        self._seconds_before = state.seconds

    def open_segment(self, sampler: CursorBatchSampler) -> None:
        """A stretch of an epoch with one batch size begins."""
        self._sampler = sampler
        self._batches = self._fetched = self._samples = self._tokens = 0

    def fetched(self, tokens: Sequence[int]) -> None:
        """Tokens of each micro-batch of the optimizer step that is about to be computed, on this rank."""
        assert self._sampler is not None
        self._fetched, self._samples, self._tokens = len(tokens), 0, 0
        for number, count in enumerate(tokens, self._batches):
            share, extra = divmod(self._sampler.samples_in(number, 1), self._sampler.world_size)
            mine = share + (self._sampler.rank < extra)
            self._samples += mine
            self._tokens += count if mine else 0  # of a placeholder, none

    def seconds(self) -> float:
        """Time spent training, over all restarts."""
        return self._seconds_before + time.perf_counter() - self._resumed_at

    def step_done(self, step: int) -> None:
        """An optimizer step has been made: advance the cursor, agree, and ask the schedule."""
        state = self.state
        assert self._sampler is not None
        state.step = step
        samples = self._sampler.samples_in(self._batches, self._fetched)
        state.cursor.advance(samples)
        state.seconds = self.seconds()
        state.epoch_closed = False
        self._batches += self._fetched
        # Rank 0 takes the other ranks' samples to be as long as its own, which packed blocks are.
        expected = state.tokens + (self._tokens * samples // self._samples if self._samples else 0)
        decision = self._ask(expected)
        agreed = self.consensus.exchange(self.stop.signum is not None, decision, self._tokens)
        state.tokens += agreed.tokens
        self.stopping = agreed.stop
        self._decide(agreed.decision)

    def evaluated(self, step: int, loss: float) -> None:
        """An evaluation has been made: remember its raw loss and ask the schedule."""
        loss = self.consensus.loss(loss)
        self.state.loss, self.state.evaluated_at = loss, step
        if not self.listening:
            return
        self.state.evaluations.append((step, loss))
        decision = self._ask(self.state.tokens, evaluating=True)
        self._decide(self.consensus.exchange(False, decision, 0).decision)

    def begin(self) -> None:
        """Ask the schedule before the first step: an operation with no wait is due at once."""
        self._decide(self.consensus.exchange(False, self._ask(self.state.tokens), 0).decision)

    @property
    def epoch_over(self) -> bool:
        """Whether the segment has read the epoch to its end."""
        return self._sampler is not None and len(self._sampler) == 0

    @property
    def due(self) -> bool:
        return self.state.position.pending is not None

    def upcoming(self) -> Upcoming | None:
        """The next operation and how far its trigger is."""
        entry = self.state.position.upcoming(self.schedule)
        if entry is None:
            return None
        pending = self.state.position.pending
        progress = f"due: {pending}" if pending else entry.trigger.progress(self.state.clock())
        return Upcoming(entry.operation.name, entry.operation.value, progress)

    def applied(self) -> None:
        """The pending operation has been applied."""
        state = self.state
        entry = state.position.upcoming(self.schedule)
        assert entry is not None
        state.executed.append({"index": state.position.done, "step": state.step, "entry": entry.to_dict()})
        state.position = state.position.applied(self.schedule, state.step)
        state.evaluations = []

    def _ask(self, tokens: int, evaluating: bool = False) -> str | None:
        if self.due:
            return None
        clock = replace(self.state.clock(evaluating=evaluating), tokens=tokens)
        return self.state.position.ask(self.schedule, clock)

    def _decide(self, reason: str | None) -> None:
        if reason is not None:
            self.state.position = replace(self.state.position, pending=reason)
