"""When a guard closes, and what is remembered of it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from morphing_trainer.run.guard import BadSteps, Guard, Verdict
from morphing_trainer.schedule_entry import GuardTerms

OPEN, WELL, FAILED = Verdict.OPEN, Verdict.WELL, Verdict.FAILED
TERMS = GuardTerms(max_loss_increase=0.5, within_steps=10)


def guard(**changes: Any) -> Guard:
    given = {"index": 2, "operation": "change_lr", "step": 20, "before": 3.0, "checkpoint": "checkpoint-20"}
    return Guard.over(TERMS, **{"best": None, **given, **changes})


@pytest.mark.parametrize(
    ("step", "loss", "verdict"),
    [
        (20, 3.0, OPEN),  # right behind the operation: the loss of a function that is as it was
        (21, 3.5, WELL),
        (21, 3.51, OPEN),
        (29, math.nan, OPEN),
        (29, -math.inf, OPEN),
        (30, 3.5, WELL),
        (30, 3.51, FAILED),
        (30, math.nan, FAILED),
        (30, math.inf, FAILED),
        (35, 4.0, FAILED),
    ],
)
def test_verdict(step: int, loss: float, verdict: Verdict) -> None:
    assert guard().judged(step, loss) is verdict


def test_the_last_evaluation_decides() -> None:
    assert guard().judged(25, 4.0, last=True) is FAILED
    assert guard().judged(25, 3.2, last=True) is WELL
    assert guard().judged(20, 4.0, last=True) is OPEN


@pytest.mark.parametrize("before", [math.nan, math.inf, -math.inf])
def test_nothing_is_as_good_as_a_loss_that_was_not_finite(before: float) -> None:
    assert guard(before=before).judged(21, 1.0) is OPEN
    assert guard(before=before).judged(30, 1.0) is FAILED
    assert guard(before=before).judged(30, before) is FAILED


@pytest.mark.parametrize("before", [3.0, math.nan, math.inf])
def test_round_trip(before: float) -> None:
    made = guard(before=before, best="checkpoint-15")
    assert made.kept == ("checkpoint-20", "checkpoint-15")
    read = Guard.from_dict(json.loads(json.dumps(made.to_dict(), allow_nan=False)))
    assert repr(read) == repr(made)
    assert guard(best="checkpoint-20").kept == ("checkpoint-20",)


@pytest.mark.parametrize("name", ["../checkpoint-20", "a/b", "", ".hidden", 7, None])
def test_a_folder_outside_of_the_run_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="is not the name of a checkpoint"):
        Guard.from_dict({**guard().to_dict(), "checkpoint": name})


def test_bad_steps() -> None:
    bad = BadSteps().left_out().left_out()
    assert (bad.skipped, bad.streak) == (2, 2)
    assert (bad.made().skipped, bad.made().streak) == (2, 0)
    back = bad.going_back(17, 10).going_back(12, 10)
    assert (back.known, back.returns, back.to, back.streak) == ((12, 17), 2, 10, 0)
    assert back.going_back(30, 20).returns == 1
    assert BadSteps.from_dict(json.loads(json.dumps(back.to_dict()))) == back


@pytest.mark.parametrize(
    ("loss", "reason", "said"),
    [
        (3.4, "", ". The evaluation loss was 3.1000 before it and is 3.4000 now; the guard allows 3.2000 at most"),
        (None, "", ". The evaluation loss was 3.1000 before it and is not known; the guard allows 3.2000 at most"),
        (None, "the loss of step 6 is NaN", ". The evaluation loss was 3.1000 before it; the loss of step 6 is NaN"),
    ],
)
def test_what_is_said_of_it(loss: float | None, reason: str, said: str) -> None:
    guard = Guard(0, "change_lr", 4, 3.1, 3.2, 9, False, "checkpoint-4")
    assert guard.told(6, loss, reason) == f"change_lr of step 4 has not worked out by step 6{said}"
