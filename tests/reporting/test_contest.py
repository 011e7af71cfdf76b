"""Runs held against each other: figures worked out by hand, and the picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from morphing_trainer.reporting.console import scaled_text
from morphing_trainer.reporting.contest import Crossing, contest, crossing
from morphing_trainer.reporting.contest_figure import contest_figure
from morphing_trainer.reporting.contest_tables import contest_lines
from morphing_trainer.reporting.records import Record
from morphing_trainer.run.stretches import Stretch, spent
from tests.reporting.pictures import assert_readable, run, words

AXES = ("steps", "tokens", "seconds", "flops")


def test_a_target_is_reached_between_two_evaluations() -> None:
    falling = [(10.0, 5.0), (20.0, math.nan), (30.0, 3.0), (40.0, 4.0), (50.0, 2.0)]
    assert crossing(falling, 4.0) == Crossing(20.0)
    assert crossing(falling, 3.0) == Crossing(30.0), "not lost again by rising"
    assert crossing(falling, 5.0) == Crossing(10.0, from_start=True)
    assert crossing(falling, 1.9) is None
    assert crossing([(10.0, 5.0), (10.0, 3.0)], 4.0) == Crossing(10.0), "an operation that lowers the loss at once"
    assert crossing([], 1.0) is None and crossing([(1.0, math.nan)], 9.0) is None


def test_losses_are_compared_where_all_have_come() -> None:
    """Per step of both runs: 64 tokens, half a second, 1e9 operations; the slow one needs twice the steps."""
    fast, slow = run("fast", steps=100), run("slow", steps=200)
    found = contest([slow, fast], AXES, "eval_loss")
    assert found.equal == {"steps": 100, "tokens": 6400, "seconds": 50, "flops": 1e11}
    lows = {"fast": 2.1 + 6 / math.e, "slow": 2.1 + 6 / math.e}
    for entrant in found.entrants:
        assert entrant.best == pytest.approx(lows[entrant.name])
        by_axis = {entrant.at(axis, x) for axis, x in found.equal.items()}
        assert len({round(value or 0, 9) for value in by_axis}) == 1
    assert found.entrants[1].at("steps", 100) == pytest.approx(lows["fast"])
    assert found.entrants[0].at("steps", 100) == pytest.approx(2.1 + 6 * math.exp(-0.5))
    assert found.entrants[0].at("steps", 125) == pytest.approx(2.1 + 3 * (math.exp(-0.5) + math.exp(-0.75)))
    assert found.entrants[1].at("steps", 101) is None and found.entrants[1].at("steps", 49) is None
    assert found.target == max(entrant.best for entrant in found.entrants if entrant.best is not None)
    assert found.first == {axis: ["fast"] for axis in AXES}
    ratios = {entrant.name: entrant.reached["flops"].ratio for entrant in found.entrants}
    assert ratios == {"fast": 1.0, "slow": pytest.approx(2.0)}
    assert "by tokens: fast was first, slow needed 2.00x as many" in contest_lines(found)
    at_five = contest([slow, fast], ["steps"], "eval_loss", 5.0)
    assert {each.name: each.reached["steps"].from_start for each in at_five.entrants} == {"slow": False, "fast": False}
    nowhere = contest([slow, fast], ["steps"], "eval_loss", 0.5)
    assert not nowhere.first and "never" in "\n".join(contest_lines(nowhere))


def test_runs_that_share_nothing() -> None:
    """One has evaluated up to step 100 only, the other from 150 on: no step, but a loss that both have reached."""
    early, late = run("early", steps=100), run("late", steps=400, evaluate=50)
    late = replace(late, lines=[line for line in late.lines if line["step"] >= 150])
    found = contest([early, late], ["steps"], "eval_loss")
    assert found.equal == {} and found.target is not None
    said = "\n".join(contest_lines(found))
    assert "after equal steps: no loss is known of all" in said
    below = contest([early, late], ["steps"], "eval_loss", 7.9)
    said = "\n".join(contest_lines(below))
    assert "<= 150" in said and "<= 50" in said
    assert "by steps: early and late had it in the first loss logged; when before is not known" in said
    often = run("often", steps=100, evaluate=10)
    assert contest([often, late], ["steps"], "eval_loss", 6.3).had("steps") == ["late"]
    assert ">= " not in "\n".join(contest_lines(contest([often, late], ["steps"], "eval_loss", 6.3)))
    behind = contest([early, run("slow", steps=900)], ["steps"], "eval_loss", 6.0)
    assert "(>= 7.76x)" in "\n".join(contest_lines(behind)), "at least, as early was there by step 50"


def test_work_is_counted_from_model_to_model() -> None:
    path = [Stretch(0, 2.0), Stretch(100, 3.0), Stretch(100, 7.0), Stretch(150, 10.0)]
    assert [spent(tokens, path) for tokens in (0, 50, 100, 120, 150, 160)] == [0, 100, 200, 340, 550, 650]


def test_figures_as_people_write_them() -> None:
    assert [scaled_text(x) for x in (0.0, 12.0, 1.5e9, 9.999e11, 2e21)] == [
        "0.00 ",
        "12.0 ",
        "1.50 G",
        "1.00 T",
        "2.00 Z",
    ]


def test_the_picture_is_readable(record: Callable[..., Record]) -> None:
    runs = [
        run("a run with a long name of its own", [record(2, 50), record(1, 150)]),
        run("b", steps=120),
        run("blind"),
    ]
    runs[2] = replace(runs[2], lines=[line for line in runs[2].lines if "loss" in line])
    for axes in (AXES, ("seconds",), ("steps", "flops", "tokens")):
        figure = contest_figure(contest(runs, axes, "eval_loss"), runs)
        assert_readable(figure)
        assert len(figure.axes) == len(axes)
        for panel in figure.axes:
            ids = [line.get_gid() for line in panel.lines]
            assert (ids.count("target"), ids.count("reached"), ids.count("operation")) == (1, 2, 2)
        assert "3 runs compared (none of blind)" in words(figure) and "b first" in words(figure)
    assert_readable(contest_figure(contest(runs, AXES, "eval_loss", 0.1), runs))
