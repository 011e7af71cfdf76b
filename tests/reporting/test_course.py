from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.figure import Figure

from morphing_trainer.errors import ConfigError
from morphing_trainer.reporting.course import course_figure
from morphing_trainer.reporting.lines import analysis_line, timing_line
from morphing_trainer.reporting.profile import profile_figure
from morphing_trainer.reporting.records import Record
from morphing_trainer.reporting.run_data import AXES, RunData
from tests.reporting.pictures import assert_readable, lines, run, words

Maker = Callable[..., Record]


def curve(figure: Figure, name: str) -> list[tuple[float, float]]:
    (found,) = (line for axes in figure.axes for line in axes.lines if line.get_label() == name)
    return [(float(x), float(y)) for x, y in zip(found.get_xdata(), found.get_ydata(), strict=True)]


def operations(figure: Figure) -> list[float]:
    return [float(line.get_xdata()[0]) for line in figure.axes[0].lines if line.get_gid() == "operation"]


def y_labels(figure: Figure) -> list[str]:
    return [axes.get_ylabel().replace("\n", " ") for axes in figure.axes]


@pytest.mark.parametrize(
    ("axis", "unit", "label"),
    [
        ("steps", 1, "optimizer step"),
        ("tokens", 64, "training tokens"),
        ("seconds", 0.5, "training time (seconds)"),
        ("flops", 1, r"floating-point operations ($\times\,10^{9}$)"),
    ],
)
def test_everything_lies_where_it_belongs_on_every_axis(record: Maker, axis: str, unit: float, label: str) -> None:
    records = [record(1, 50), record(2, 100)]
    figure = course_figure(run(records=records, stages={"books": 0, "talk": 100}), AXES[axis])
    assert figure.axes[-1].get_xlabel() == label
    assert [x for x, _ in curve(figure, "evaluation loss")] == [unit * step for step in (50, 100, 150, 200)]
    assert operations(figure) == [50 * unit, 100 * unit]
    bands = [band.get_datalim(figure.axes[0].transData) for band in figure.axes[0].collections]
    assert [(band.x0, band.x1) for band in bands] == [(0, 100 * unit), (100 * unit, 200 * unit)]
    assert_readable(figure)


def test_long_times_are_told_in_minutes_and_hours() -> None:
    assert AXES["seconds"].unit(90) == (1, "training time (seconds)")
    assert AXES["seconds"].unit(150) == (60, "training time (minutes)")
    assert AXES["seconds"].unit(7200) == (3600, "training time (hours)")


def test_panels_are_there_for_what_was_logged() -> None:
    plain = course_figure(run(), AXES["steps"])
    assert y_labels(plain) == ["loss", "learning rate"]
    analysed = {
        "analysis/rank_share_attn": 0.7,
        "analysis/rank_use": 0.4,
        "analysis/drift_start_attn": 0.1,
        "eval_token_accuracy": 0.3,
        "eval_word_accuracy": 0.2,
    }
    figure = course_figure(RunData("demo", lines(**analysed)), AXES["steps"])
    assert y_labels(figure) == [
        "loss",
        "accuracy",
        "learning rate",
        "effective rank / full rank",
        "drift since start (1 - cosine)",
    ]
    assert curve(figure, "token accuracy") == [(step, 0.3) for step in (50, 100, 150, 200)]
    assert curve(figure, "adapters") == [(step, 0.4) for step in (50, 100, 150, 200)]
    assert_readable(figure)


def test_what_is_missing_is_said() -> None:
    assert "no evaluation has been logged" in words(course_figure(run(evaluate=0), AXES["steps"]))
    assert "no evaluation" not in words(course_figure(run(), AXES["steps"]))


@pytest.mark.parametrize("steps", [10, 30])
def test_a_few_points_are_seen(steps: int) -> None:
    figure = course_figure(run(steps=steps, evaluate=10), AXES["steps"])
    (line,) = (line for line in figure.axes[0].lines if line.get_label() == "training loss")
    assert line.get_marker() == "o" and len(line.get_xdata()) == steps // 10
    assert_readable(figure)


def test_thirty_operations_and_stages_too_short_for_their_names_stay_readable(record: Maker) -> None:
    records = [record(1 + i % 4, 100 + 90 * i) for i in range(30)]
    stages = {"a stage with a rather long name": 0.0, "b": 150.0, "wikitext-103": 180.0, "end": 2500.0}
    figure = course_figure(run(records=records, stages=stages, steps=3000), AXES["steps"])
    assert_readable(figure)
    text = words(figure)
    assert "(a) stage a stage with a rather long name" in text and "wikitext-103" in text
    assert all(f"step {100 + 90 * i:,}  " in text for i in range(30))


def test_a_run_without_a_plan_has_no_strip_of_stages() -> None:
    assert len(course_figure(run(stages={"train": 0}), AXES["steps"]).axes) == 2
    assert len(course_figure(run(stages={"a": 0, "b": 50}), AXES["steps"]).axes) == 3


def test_nan_leaves_a_mark() -> None:
    data = RunData("demo", [*lines(), {"loss": math.nan, "step": 210}])
    assert "NaN or infinite" in words(course_figure(data, AXES["steps"]))


def test_lines_without_their_place_are_refused_in_words() -> None:
    old = RunData("old", [{"step": 10, "loss": 3.0}])
    assert course_figure(old, AXES["steps"])
    for axis, key in (("tokens", "tokens"), ("seconds", "seconds"), ("flops", "total_flos")):
        with pytest.raises(ConfigError, match=f"old: its log lines have no '{key}'.*--x steps works"):
            course_figure(old, AXES[axis])


def test_what_lies_between_log_lines_is_interpolated(record: Maker) -> None:
    data: Any = RunData("demo", [{"step": 10, "tokens": 1000, "loss": 1.0}, {"step": 20, "tokens": 4000}])
    assert data.places([0, 5, 10, 15, 20, 30], AXES["tokens"]) == [0, 500, 1000, 2500, 4000, 4000]


PROFILE = {"forward/backward": 70.0, "data": 3, "optimizer": 12, "evaluation": 8, "morphs": 1, "saving": 2, "other": 4}


def test_where_the_time_went() -> None:
    runs = [RunData(name, [], timing=PROFILE) for name in ("demo", "another-run-with-a-very-long-name-indeed")]
    figure = profile_figure(runs)
    bars = [bar for bar in figure.axes[0].patches if bar.get_width() > 0]
    assert sum(bar.get_width() for bar in bars) == pytest.approx(200)
    assert [round(bar.get_width()) for bar in bars[:7]] == [70, 3, 12, 8, 1, 2, 4]
    assert_readable(figure)


def test_time_and_analysis_in_words() -> None:
    assert timing_line({"data": 1, "optimizer": 99, "saving": 0}) == "optimizer 99 %, data 1 %"
    assert timing_line({"data": 1, "optimizer": 999}) == "optimizer 100 %, data < 1 %"
    assert timing_line({}) == ""
    numbers = {"analysis/rank_share_mlp": 0.5, "analysis/drift_start_mlp": 0.012, "analysis/rank_use": 0.25, "epoch": 1}
    expected = "analysis: rank share mlp 50 %; drift mlp 0.012; adapters use 25 % of their rank"
    assert analysis_line(numbers) == expected
    assert analysis_line({"epoch": 1}) == ""
