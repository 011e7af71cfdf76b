"""One run in progress: what counts its steps and asks its schedule. No model, no loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from morphing_trainer.data.cursor import CursorBatchSampler
from morphing_trainer.data.orders import Ints
from morphing_trainer.reporting.records import Upcoming
from morphing_trainer.run.consensus import Consensus
from morphing_trainer.run.course import Course
from morphing_trainer.run.guard import Guard, Verdict
from morphing_trainer.run.signals import StopRequest
from morphing_trainer.run.state import RunState
from morphing_trainer.run.statistics import LossMeter, Totals
from morphing_trainer.run.timing import Stopwatch
from morphing_trainer.schedule import Schedule
from morphing_trainer.settings import Settings


class Session:
    """Counts samples, tokens and time, and finds out when an operation is due, on all ranks alike.

    `state.position.pending` holds the reason once one is; the trainer then ends its segment and applies it.

    Args:
        averages_tokens: a rank's loss is divided by the tokens of all ranks, not by its own.
        consensus: of the ranks, if they have one already.
    """

    def __init__(
        self,
        schedule: Schedule,
        state: RunState,
        course: Course,
        *,
        averages_tokens: bool = True,
        consensus: Consensus | None = None,
    ) -> None:
        self.schedule = schedule
        self.state = state
        self.course = course
        self.consensus = consensus or Consensus()
        self.stop = StopRequest()
        self.averages_tokens = averages_tokens
        self.meter = LossMeter(state.totals.get(state.stage_name, Totals()))
        self.stopping = False
        self.listening = True
        """Whether evaluations count; not during a re-evaluation that only shows what an operation did."""
        self.saves = True
        """Whether the last checkpoint that was due has been saved; a dead model's is not."""
        self.writing = False
        """Whether that is still being written; callbacks hear of it when it is there."""
        self.is_written: Callable[[], bool] = lambda: False
        """Asked at the end of every step: whether a checkpoint is being written, and this rank has done its part."""
        self.written = False
        """Whether all had, at the end of the last step."""
        self.is_pressed: Callable[[], bool] = lambda: False
        """Asked at the end of every step: whether memory has become short for this rank."""
        self.pressed = False
        """Whether it has for any rank, at the end of the last step."""
        self.what_is_bad: Callable[[], int] = lambda: 0
        """Asked at the end of every step: what was not finite, as far as this rank knows by now; see `run.finite`."""
        self.bad = 0
        """The same of all ranks, at the end of the last step."""
        self.last_chance = False
        """Whether the evaluation that comes is the last one for the guard that is open."""
        self.judged: tuple[Guard, Verdict] | None = None
        """The guard that the last evaluation has closed, and how. A run whose guard failed must not go on."""
        self._sampler: CursorBatchSampler | None = None
        self._batches = self._fetched = self._samples = self._tokens = 0
        self._resumed_at = time.perf_counter()
        self.stopwatch = Stopwatch(state.timing)
        self._seconds_before = state.seconds

    def open_segment(self, sampler: CursorBatchSampler) -> None:
        """A stretch of an epoch with one batch size begins."""
        self._sampler = sampler
        self._batches = self._fetched = self._samples = self._tokens = 0

    def fetched(self, tokens: Sequence[int], tokens_of: Callable[[Ints], int] | None = None) -> None:
        """An optimizer step is about to be computed.

        Args:
            tokens: size of each of its micro-batches on this rank.
            tokens_of: tokens that samples really have, where batches are filled up to their longest one.
        """
        assert self._sampler is not None
        self._fetched, self._samples, self._tokens = len(tokens), 0, 0
        for number, count in enumerate(tokens, self._batches):
            share = self._sampler.share(number)
            mine = len(share)
            self._samples += mine
            if tokens_of is not None:
                count = tokens_of(self._sampler.cursor.arranged.indices[share.start : share.stop])
            self._tokens += count if mine else 0  # of a placeholder, none

    def seconds(self) -> float:
        """Time spent training, over all restarts."""
        return self._seconds_before + time.perf_counter() - self._resumed_at

    def step_done(self, step: int) -> None:
        """An optimizer step has been made: advance the cursor, agree, and ask the schedule."""
        state = self.state
        assert self._sampler is not None
        layout, before = self._sampler.layout, state.cursor.position
        state.step = step
        samples = layout.samples_in(self._batches, self._fetched)
        self._batches += self._fetched
        state.cursor.advance_to(layout.position_after(self._batches))
        seconds, state.seconds = state.seconds, self.seconds()
        state.timing = self.stopwatch.profile()
        state.epoch_closed = False
        # Rank 0 takes the other ranks' samples to be as long as its own, which packed blocks are.
        expected = state.tokens + (self._tokens * samples // self._samples if self._samples else 0)
        decision = self._ask(expected)
        agreed = self.consensus.exchange(
            self.stop.signum is not None,
            decision,
            self._tokens,
            self.is_pressed(),
            self.is_written(),
            self.what_is_bad(),
        )
        self.pressed, self.written, self.bad = agreed.pressed, agreed.written, agreed.bad
        state.tokens += agreed.tokens
        state.stage_tokens += agreed.tokens
        dropped = state.cursor.position - before - samples
        step_totals = Totals(1, samples, agreed.tokens, dropped, seconds=state.seconds - seconds)
        state.totals[state.stage_name] = state.totals.get(state.stage_name, Totals()) + step_totals
        self.course.step_done(state)
        self.stopping = agreed.stop
        self._decide(agreed.decision)

    def enter(self, index: int) -> Settings:
        """The next stage begins, see `Course.enter`."""
        self.count_losses()
        settings = self.course.enter(self.state, index)
        self.meter = LossMeter(Totals())
        return settings

    def count_losses(self) -> None:
        """Bring the loss in the stage's totals up to date. All ranks do it together."""
        state = self.state
        loss_sum, tokens = self.meter.read()
        totals = state.totals.get(state.stage_name, Totals())
        found = self.consensus.gathered([loss_sum, tokens])
        if self.averages_tokens:  # over all ranks: each has the share of its own samples, times the number of ranks
            loss_sum = sum(figures[0] for figures in found) / len(found)
        elif len(found) > 1:  # each has begun with what all had together
            before, counted = self.meter.begun
            loss_sum = before + sum(figures[0] - before for figures in found)
            tokens = counted + sum(int(figures[1]) - counted for figures in found)
        state.totals[state.stage_name] = replace(totals, loss_sum=loss_sum, loss_tokens=tokens)

    def evaluated(self, step: int, loss: float, rank_use: float | None = None) -> None:
        """An evaluation has been made: remember its raw loss and ask the schedule.

        Args:
            rank_use: what an analysis beside it has found, None without one.
        """
        loss = self.consensus.loss(loss)
        self.state.loss, self.state.evaluated_at = loss, step
        verdict = self._judge(step, loss)
        if verdict is Verdict.FAILED:
            return
        if not self.listening:
            if verdict is Verdict.WELL:  # what was held back may be due by now
                self.begin()
            return
        if rank_use is not None:
            self.state.rank_use = rank_use
        self.state.evaluations.append((step, loss))
        decision = self._ask(self.state.tokens, evaluating=True, analysing=rank_use is not None)
        self._decide(self.consensus.exchange(False, decision, 0).decision)

    def _judge(self, step: int, loss: float) -> Verdict:
        guard = self.state.guard
        if guard is None:
            return Verdict.OPEN
        last = self.last_chance or self.state.stage_over or self.state.step >= self.state.end
        verdict = guard.judged(step, loss, last=last)
        if verdict is not Verdict.OPEN:
            self.judged = guard, verdict
        if verdict is Verdict.WELL:
            self.state.guard = None
        return verdict

    @property
    def wants_verdict(self) -> bool:
        """Whether the guard that is open must be closed by an evaluation at this step."""
        guard, state = self.state.guard, self.state
        over = guard is not None and (state.step >= guard.deadline or state.stage_over or state.step >= state.end)
        return over and self.judged is None

    def begin(self) -> None:
        """Ask the schedule before the first step of a run or stage: an operation may be due at once."""
        self._decide(self.consensus.exchange(False, self._ask(self.state.tokens), 0).decision)

    @property
    def epoch_over(self) -> bool:
        """Whether the segment has read the epoch to its end."""
        return self._sampler is not None and self._batches >= len(self._sampler.layout)

    @property
    def epochs(self) -> float:
        """Epochs trained, with their fraction, in all stages together."""
        cursor = self.state.cursor
        # Whole at an epoch's end, also where the last samples are left out.
        return self.state.epochs_before + (cursor.epoch + 1 if self.epoch_over else cursor.fraction)

    @property
    def due(self) -> bool:
        return self.state.position.pending is not None

    def upcoming(self) -> Upcoming | None:
        """The next operation and how far its trigger is."""
        entry = self.state.position.upcoming(self.schedule)
        if entry is None:
            return None
        pending, guard = self.state.position.pending, self.state.guard
        progress = f"due: {pending}" if pending else entry.trigger.progress(self.state.clock())
        if guard is not None:
            progress += f", held back until {guard.operation} has worked out (by step {guard.deadline})"
        return Upcoming(entry.operation.name, entry.operation.value, progress)

    def applied(self, measured: Mapping[str, float] | None = None, guard: Guard | None = None) -> None:
        """The pending operation has been applied.

        Args:
            measured: what it was decided by, if it is one that measures.
            guard: of this operation, which is open from here on.
        """
        state = self.state
        entry = state.position.upcoming(self.schedule)
        assert entry is not None
        state.executed.append(
            {"index": state.position.done, "step": state.step, "stage": state.stage_index, "entry": entry.to_dict()}
            | ({} if measured is None else {"measured": dict(measured)})
        )
        state.position = state.position.applied(self.schedule, state.step)
        state.evaluations, state.rank_use = [], None
        state.guard = guard

    def _ask(self, tokens: int, evaluating: bool = False, analysing: bool = False) -> str | None:
        if self.due or self.state.guard is not None or self.state.position.upcoming(self.schedule) is None:
            return None  # while a guard is open, what becomes of the operation before is not known
        clock = replace(self.state.clock(evaluating=evaluating), tokens=tokens, analysing=analysing)
        return self.state.position.ask(self.schedule, clock)

    def _decide(self, reason: str | None) -> None:
        if reason is not None:
            self.state.position = replace(self.state.position, pending=reason)
