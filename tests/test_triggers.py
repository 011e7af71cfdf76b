from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morphing_trainer.data.cursor import Batch, Cursor, CursorBatchSampler
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.run.course import Course, TrainingStage
from morphing_trainer.run.length import Length
from morphing_trainer.run.session import Session
from morphing_trainer.run.state import RunState
from morphing_trainer.schedule import Schedule
from morphing_trainer.settings import Settings
from morphing_trainer.triggers import (
    AllOf,
    AnyOf,
    AtShare,
    AtStep,
    AtTokens,
    Clock,
    InStage,
    LossBelow,
    Plateau,
    Trigger,
    Waited,
    stages_named,
)
from tests.support import Tokens, arguments, tiny_config

NEVER = (math.nan, math.inf, -math.inf)


def clock(*losses: float, step: int = 0, tokens: int = 0, waited: int = 0, every: int = 10) -> Clock:
    """A tick that is an evaluation if there are losses, made every so many steps."""
    evaluations = tuple((every * (index + 1), loss) for index, loss in enumerate(losses))
    return Clock(step, 0.0, tokens, 0.0, waited, evaluations, evaluating=bool(losses))


@pytest.mark.parametrize(
    ("trigger", "below", "at"),
    [
        (Waited(value=5), clock(waited=4), clock(waited=5)),
        (AtStep(value=5), clock(step=4), clock(step=5)),
        (AtTokens(value=5), clock(tokens=4), clock(tokens=5)),
        (LossBelow(value=5), clock(5.0), clock(4.999)),
    ],
)
def test_thresholds_are_exact(trigger: Trigger, below: Clock, at: Clock) -> None:
    assert trigger.due(below) is None
    assert trigger.due(at)


def test_a_share_is_of_the_whole_run() -> None:
    """To the nearest step: 0.7 times 10 is a little more than 7 in binary fractions, or a little less."""
    trigger = AtShare(value=0.7)
    for end, step in ((10, 7), (100, 70), (1001, 701), (2, 1)):
        assert trigger.due(replace(clock(step=step - 1), end=end)) is None
        assert trigger.due(replace(clock(step=step), end=end)) == f"70 % of the run, step {step}"
    assert trigger.due(clock(step=10**9)) is None  # of a run whose end is not known
    assert trigger.progress(replace(clock(step=3), end=10)) == "step 3 of 7, after 70 % of the run"
    assert trigger.describe() == "after 70 % of the run"


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, math.nan])
def test_a_share_is_inside_the_run(value: float) -> None:
    with pytest.raises(ValueError, match="value"):
        AtShare(value=value)


def test_no_wait_is_due_at_once() -> None:
    assert Waited(value=0).due(clock()) == "waited 0 steps"


def test_a_loss_fires_at_an_evaluation_only() -> None:
    trigger, tick = LossBelow(value=5), clock(9.0, 4.0)
    assert trigger.due(tick) == "loss 4.0000 < 5"
    assert trigger.due(replace(tick, evaluating=False)) is None
    assert trigger.due(clock(4.0, 9.0)) is None


def test_infinity_fires_at_the_first_evaluation_and_zero_never() -> None:
    assert LossBelow(value=math.inf).due(clock()) is None
    assert LossBelow(value=math.inf).due(clock(1e30)) == "at an evaluation"
    for loss in (0.0, 1e-30, 5.0):
        assert LossBelow(value=0).due(clock(loss)) is None
    assert not LossBelow(value=0).can_fire(evaluates=True)


@pytest.mark.parametrize("dead", NEVER)
def test_a_dead_model_fires_nothing(dead: float) -> None:
    for trigger in (LossBelow(value=5), LossBelow(value=math.inf), Plateau(window=2, slope=1e9)):
        assert trigger.due(clock(1.0, dead)) is None
    # It stays in the window until enough losses came after it.
    assert Plateau(window=2, slope=1).due(clock(1.0, dead, 1.0)) is None
    assert Plateau(window=2, slope=1).due(clock(1.0, dead, 1.0, 1.0))


@given(
    st.lists(st.tuples(st.integers(1, 500), st.floats(0, 20)), min_size=2, max_size=9),
    st.integers(2, 6),
    st.floats(0, 5),
)
def test_plateau_is_the_least_squares_line(points: list[tuple[int, float]], window: int, slope: float) -> None:
    steps = np.cumsum([gap for gap, _ in points])
    losses = np.array([loss for _, loss in points])
    evaluations = tuple(zip(steps.tolist(), losses.tolist(), strict=True))
    fired = Plateau(window=window, slope=slope).due(Clock(int(steps[-1]), 0.0, 0, 0.0, 0, evaluations, True))
    if len(points) < window:
        assert fired is None
        return
    fall = -1000 * np.polyfit(steps[-window:] - steps[-window], losses[-window:], 1)[0]
    if abs(fall - slope) > 1e-6 * max(1.0, abs(fall)):
        assert (fired is not None) == (fall < slope)


def test_plateau_in_numbers() -> None:
    falling = clock(5.0, 4.0, 3.0)  # 1 per 10 steps: 100 per 1,000
    assert Plateau(window=3, slope=99.9).due(falling) is None
    assert (
        Plateau(window=3, slope=100.1).due(falling) == "plateau: loss falls by 100 per 1,000 steps over 3 evaluations"
    )
    rising = "plateau: loss rises by 100 per 1,000 steps over 3 evaluations"
    assert Plateau(window=3, slope=99.9).due(clock(3.0, 4.0, 5.0)) == rising
    assert Plateau(window=4, slope=1e9).due(falling) is None
    assert Plateau(window=3).due(clock(3.0, 3.0, 3.1))
    assert Plateau(window=3, slope=1).due(replace(falling, evaluating=False)) is None
    at_one_step = replace(falling, evaluations=((10, 5.0), (10, 4.0), (10, 3.0)))
    assert Plateau(window=3, slope=1e9).due(at_one_step) is None


def test_all_and_any() -> None:
    low, late = LossBelow(value=5), AtStep(value=10)
    both, either = AllOf(parts=(low, late)), AnyOf(parts=(low, late))
    assert both.due(clock(4.0, step=10)) == "loss 4.0000 < 5 and step 10"
    assert both.due(clock(4.0, step=9)) is None
    assert both.due(clock(6.0, step=10)) is None
    assert both.due(replace(clock(4.0, step=11), evaluating=False)) is None
    assert either.due(clock(4.0, step=9)) == "loss 4.0000 < 5"
    assert either.due(clock(step=10)) == "step 10"
    assert either.due(clock(6.0, step=9)) is None


def test_in_a_stage() -> None:
    here, later = InStage(name="a"), InStage(name="b", then=Waited(value=5))
    before, inside = replace(clock(step=20, waited=9), stages={"a": 0}), {"a": 0, "b": 17}
    assert here.due(clock(step=20)) is None
    assert here.due(before) == "stage a"
    assert here.due(replace(before, stages=inside)) == "stage a", "also in a later stage"
    assert later.due(before) is None
    assert later.due(replace(before, stages=inside)) is None, "3 steps into the stage, whatever came before"
    assert later.due(replace(before, step=22, stages=inside)) == "stage b: waited 5 steps"
    assert later.due(replace(before, step=22, waited=2, stages=inside)) is None, "2 steps after the last operation"
    low = AllOf(parts=(here, LossBelow(value=5)))
    assert low.due(replace(clock(4.0), stages={"a": 0})) == "stage a and loss 4.0000 < 5"
    assert low.due(replace(clock(6.0), stages={"a": 0})) is None
    never = InStage(name="a", then=LossBelow(value=0))
    assert here.can_fire(False)
    assert not never.can_fire(True)
    assert stages_named(AnyOf(parts=(later, AllOf(parts=(here, low))))) == ["b", "a", "a"]


def test_what_can_ever_fire() -> None:
    low, stalled, late, dead = LossBelow(value=5), Plateau(window=2), AtStep(value=10), LossBelow(value=0)
    assert late.can_fire(False)
    assert low.can_fire(True)
    assert not low.can_fire(False)
    assert not stalled.can_fire(False)
    assert AnyOf(parts=(low, late)).can_fire(False)
    assert not AllOf(parts=(low, late)).can_fire(False)
    assert not AllOf(parts=(dead, late)).can_fire(True)
    assert not AnyOf(parts=(dead, dead)).can_fire(True)


@pytest.mark.parametrize(
    ("trigger", "tick", "described", "progress"),
    [
        (LossBelow(value=4), clock(4.3125), "loss < 4", "loss 4.3125, fires below 4"),
        (LossBelow(value=4), clock(), "loss < 4", "loss < 4"),
        (LossBelow(value=math.inf), clock(4.0), "at the next evaluation", "at the next evaluation"),
        (Waited(value=500), clock(waited=120), "after 500 steps", "120 of 500 steps waited"),
        (Waited(value=0), clock(), "at once", "0 of 0 steps waited"),
        (AtStep(value=500), clock(step=120), "at step 500", "step 120 of 500"),
        (AtTokens(value=10**6), clock(tokens=12_000), "at 1,000,000 tokens", "12,000 of 1,000,000 tokens"),
        (
            Plateau(window=3, slope=0.5),
            clock(5.0),
            "loss falls by less than 0.5 per 1,000 steps (3 evaluations)",
            "plateau: 1 of 3 evaluations",
        ),
        (
            Plateau(window=2, slope=0.5),
            clock(5.0, 4.9),
            "loss falls by less than 0.5 per 1,000 steps (2 evaluations)",
            "loss falls by 10 per 1,000 steps, fires below 0.5",
        ),
        (
            Plateau(window=2, slope=0.5),
            clock(4.9, 5.0),
            "loss falls by less than 0.5 per 1,000 steps (2 evaluations)",
            "loss rises by 10 per 1,000 steps, fires when it falls by less than 0.5",
        ),
        (
            AnyOf(parts=(LossBelow(value=4), Waited(value=500))),
            clock(4.5, waited=120),
            "loss < 4 or after 500 steps",
            "loss 4.5000, fires below 4 or 120 of 500 steps waited",
        ),
        (
            AllOf(parts=(AtStep(value=9), Waited(value=5))),
            clock(step=3, waited=2),
            "at step 9 and after 5 steps",
            "step 3 of 9 and 2 of 5 steps waited",
        ),
    ],
)
def test_words(trigger: Trigger, tick: Clock, described: str, progress: str) -> None:
    assert trigger.describe() == described
    assert trigger.progress(tick) == progress


def test_only_what_can_matter_is_named() -> None:
    parts = (LossBelow(value=0), Waited(value=5))
    assert AnyOf(parts=parts).describe() == "after 5 steps"
    assert AnyOf(parts=parts).progress(clock(4.0, waited=2)) == "2 of 5 steps waited"
    # Here the dead condition is why nothing will ever happen.
    assert AllOf(parts=parts).describe() == "loss < 0 and after 5 steps"
    assert AnyOf(parts=parts[:1]).describe() == "loss < 0"


# --- Along a run ---


def session(*entries: dict[str, Any], batch: int = 1) -> Session:
    settings = Settings(1e-3, batch, 1, 0, None, 1)
    spec = ModelSpec(tiny_config())
    state = RunState(spec, {}, settings, settings, spec, Cursor(10_000, seed=0), end=100)
    stage = TrainingStage("train", Tokens(10_000), None, Length("steps", 100))
    running = Session(Schedule.of(list(entries)), state, Course([stage], arguments(Path("unused"))))
    running.open_segment(CursorBatchSampler(state.cursor, Batch(batch, batch)))
    return running


def step(running: Session, to: int) -> None:
    while running.state.step < to and not running.due:
        running.fetched([16])
        running.step_done(running.state.step + 1)


LR = {"name": "change_lr", "value": 2}


def test_the_timeout_counts_from_the_last_operation_and_is_exact() -> None:
    running = session({**LR, "max_wait_iters": 7}, {**LR, "max_wait_iters": 5})
    step(running, 100)
    assert (running.state.step, running.state.position.pending) == (7, "waited 7 steps")
    running.applied()
    step(running, 100)
    assert running.state.step == 12


def test_an_operation_without_wait_is_due_before_the_first_step_and_its_successor_one_step_later() -> None:
    running = session({**LR, "max_wait_iters": 0}, {**LR, "max_wait_iters": 0})
    running.begin()
    assert running.due
    running.applied()
    assert not running.due
    step(running, 100)
    assert running.state.step == 1


def test_windows_start_again_after_an_operation() -> None:
    entry = {**LR, "when": {"plateau": {"window": 3, "slope": 1}}}
    running = session(entry, entry)
    for number in (1, 2, 3):
        assert not running.due
        step(running, number)
        running.evaluated(number, 2.0)
    assert running.due
    running.applied()
    for number in (4, 5):
        step(running, number)
        running.evaluated(number, 2.0)
        assert not running.due
    step(running, 6)
    running.evaluated(6, 2.0)
    assert running.due


def test_one_operation_per_evaluation_and_none_by_a_reevaluation() -> None:
    entry = {**LR, "trigger_loss": math.inf}
    running = session(entry, entry)
    step(running, 1)
    running.evaluated(1, 3.0)
    running.applied()
    running.listening = False
    running.evaluated(1, 3.0)
    running.listening = True
    assert not running.due
    assert running.state.loss == 3.0
    assert running.state.evaluations == []
    step(running, 2)
    assert not running.due
    running.evaluated(2, math.nan)
    assert not running.due
    running.evaluated(2, 3.0)
    assert running.due


def test_tokens_are_counted_before_the_question() -> None:
    running = session({**LR, "when": {"at_tokens": 48}}, batch=2)
    step(running, 100)
    assert (running.state.step, running.state.tokens) == (3, 48)
    assert running.state.cursor.position == 6


def test_what_comes_next_is_told() -> None:
    running = session({**LR, "max_wait_iters": 3})
    upcoming = running.upcoming()
    assert upcoming is not None
    assert (upcoming.operation, upcoming.value, upcoming.progress) == ("change_lr", 2.0, "0 of 3 steps waited")
    step(running, 3)
    assert (upcoming := running.upcoming()) is not None
    assert upcoming.progress == "due: waited 3 steps"
    running.applied()
    assert running.upcoming() is None
