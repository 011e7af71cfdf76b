from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from morphing_trainer.reporting.comparison import comparison_figure, difference, longest, look
from morphing_trainer.reporting.records import Record
from morphing_trainer.reporting.run_data import AXES
from tests.reporting.pictures import assert_readable, run, words

Maker = Callable[..., Record]


def panel(figure: Figure, label: str) -> list[list[tuple[float, float]]]:
    """The curves of the panel with this label on its y axis."""
    (axes,) = (axes for axes in figure.axes if axes.get_ylabel().replace("\n", " ") == label)
    curves = [(line.get_xdata(), line.get_ydata()) for line in axes.lines]
    return [[(float(x), float(y)) for x, y in zip(xs, ys, strict=True)] for xs, ys in curves]


def test_the_difference_is_taken_at_equal_x() -> None:
    reference = [(0.0, 10.0), (10.0, 0.0), (10.0, 2.0), (20.0, math.nan), (30.0, 4.0)]
    found = difference([(-1.0, 5.0), (5.0, 7.0), (10.0, 5.0), (20.0, 3.0), (25.0, math.nan), (31.0, 0.0)], reference)
    # Of the two at 10 the later one counts; across the NaN the reference goes on in a straight line.
    assert found == [(5.0, pytest.approx(1.0)), (10.0, 3.0), (20.0, pytest.approx(0.0))]
    assert difference([(1.0, 1.0)], [(1.0, math.nan)]) == []


def test_the_longest_run_is_the_one_that_others_are_held_against() -> None:
    short, long = run("short", steps=100, shift=0.5), run("long", steps=200)
    assert longest([short, long], AXES["tokens"]) is long
    forgetful = replace(long, lines=[line for line in long.lines if line["step"] > 50])
    assert longest([forgetful, long], AXES["steps"]) is long, "the one with the longer record"
    figure = comparison_figure([short, long], AXES["steps"])
    zero, gap = panel(figure, "validation loss: run - longest")
    assert [y for _, y in zero] == [0, 0] and [x for x, _ in gap] == [50, 100]
    at_50 = (2.5 + 6 * math.exp(-50 / 100)) - (2 + 6 * math.exp(-50 / 200))
    assert gap[0][1] == pytest.approx(at_50)
    assert "difference: run minus long, the longest run, at equal x; below 0 the loss of the run is lower" in words(
        figure
    )
    assert len(panel(figure, "training loss: run - longest")) == 2


def test_every_run_is_named_and_looks_different(record: Maker) -> None:
    names = [f"run-{i}" for i in range(9)]
    figure = comparison_figure([run(name, shift=i / 10) for i, name in enumerate(names)], AXES["steps"])
    assert [text.get_text() for text in figure.texts if text.get_gid() == "run"] == names
    assert len({look(i) for i in range(21)}) == 21
    assert_readable(figure)


def test_operations_and_stages_have_lanes_and_explanations(record: Maker) -> None:
    runs = [
        run("grown", [record(2, 50), record(1, 150)]),
        run("staged", [record(1, 100)], stages={"books": 0, "finetune": 190}),
        run("plain"),
    ]
    figure = comparison_figure(runs, AXES["steps"])
    text = words(figure)
    for part in (
        "step 50  stack_layers",
        "step 150  change_lr 2",
        "step 100  change_lr 2",
        "(b) stage finetune",
        "books",
    ):
        assert part in text
    marks = [text.get_text() for text in figure.axes[0].texts if text.get_gid() == "operation"]
    assert marks == ["1", "2", "1"]
    assert_readable(figure)


def test_many_operations_are_cut_short_in_words(record: Maker) -> None:
    records = [record(1 + i % 4, 20 + 6 * i) for i in range(30)]
    figure = comparison_figure([run("a", records), run("b", records)], AXES["steps"])
    assert "... 27 more: see each run's own picture" in words(figure)
    assert_readable(figure)


def test_a_run_without_evaluations_is_named_and_drawn_where_it_can_be() -> None:
    figure = comparison_figure([run("long"), run("blind", steps=150, evaluate=0)], AXES["steps"])
    assert "no evaluation has been logged by blind" in words(figure)
    assert len(panel(figure, "training loss: run - longest")) == 2
    assert not any("validation loss:" in axes.get_ylabel() for axes in figure.axes)
    assert_readable(figure)


@pytest.mark.parametrize("axis", ["tokens", "seconds", "flops"])
def test_every_axis_is_readable(record: Maker, axis: str) -> None:
    runs = [run("a-run-with-quite-a-long-name", [record(2, 50)]), run("b", steps=120, shift=0.3)]
    assert_readable(comparison_figure(runs, AXES[axis]))


def test_accuracy_is_compared_where_it_was_logged() -> None:
    figure = comparison_figure([run("a", eval_token_accuracy=0.4), run("b", eval_token_accuracy=0.3)], AXES["steps"])
    left, right = panel(figure, "token accuracy")
    assert {y for _, y in left} == {0.4} and {y for _, y in right} == {0.3}
