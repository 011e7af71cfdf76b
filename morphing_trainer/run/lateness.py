"""Operations for which the run may be too short, and those for which it was, in words."""

from __future__ import annotations

from collections.abc import Sequence

from morphing_trainer.outlook import begins
from morphing_trainer.planning import Played
from morphing_trainer.reporting.console import clean, operation_text
from morphing_trainer.run.course import Course
from morphing_trainer.run.session import Session
from morphing_trainer.run.state import RunState
from morphing_trainer.settings import Settings
from morphing_trainer.triggers import counts_tokens

_MOST = 6
"""Operations that are named one by one."""


def too_late(phases: Sequence[Played], state: RunState, course: Course, *, evaluates: bool) -> list[str]:
    """Warnings of operations that cannot come, or may not, before the run ends, as far as that can be foreseen.

    Nothing is said of operations that only the model's progress, or a stage, brings about, nor of what follows them.

    Args:
        phases: of the dry run from where the run stands.
        evaluates: the run evaluates by itself.
    """
    length = getattr(course.stages[state.stage_index].train_dataset, "tokens_per_sample", None)
    if length is None:  # how fast tokens are seen is not known
        unknown = (number for number, each in enumerate(phases) if each.entry and counts_tokens(each.entry.trigger))
        phases = phases[: next(unknown, len(phases))]

    def per_step(settings: Settings) -> int:
        return max(1, round(course.batch(settings).step_size * float(length or 0)))

    seen = state.tokens - (state.step - phases[0].soonest) * per_step(state.settings)
    times = begins(phases, per_step, evaluates=evaluates, tokens=max(0, seen), end=state.end)
    foreseen = list(zip(phases, times, strict=True))[1:]
    never = [(each, soonest) for each, (soonest, _) in foreseen if soonest >= state.end]
    late = [
        (each, latest)
        for each, (soonest, latest) in foreseen
        if soonest < state.end and latest is not None and latest >= state.end
    ]
    ends = f"the run ends at step {state.end:,}"
    told = []
    if late:
        told.append(f"{_these(late)} may come too late: {ends}, {_first(late)} at the latest")
    if never:
        told.append(f"{_these(never)} cannot come: {ends}, {_first(never)} at the earliest")
    return told


def not_applied(session: Session | None) -> list[str]:
    """A line on what a run that has come to its end has left out; none of one that was asked to stop and may go on."""
    if session is None or session.stopping:
        return []
    schedule, upcoming = session.schedule, session.upcoming()
    left = [schedule.at(index) for index in range(session.state.position.done, len(schedule))]
    names = [operation_text(each.operation.name, each.operation.value) for each in left if each and not each.completed]
    if not names or upcoming is None:
        return []
    names[0] += f" ({upcoming.progress})"
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return [clean(f"Not applied: {', '.join(names[:_MOST])}{more}")]


def _these(found: Sequence[tuple[Played, int]]) -> str:
    first, last = found[0][0].phase.index, found[-1][0].phase.index
    return f"operation {first}" if first == last else f"operations {first} to {last}"


def _first(found: Sequence[tuple[Played, int]]) -> str:
    each, step = found[0]
    name = clean(operation_text(str(each.phase.operation), each.phase.value))
    return f"{name if len(found) == 1 else f'the first of them ({name})'} comes at step {step:,}"
