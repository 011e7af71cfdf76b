from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from morphing_trainer.reporting.plots import losses_figure, plot_losses, series
from morphing_trainer.reporting.records import Phase, Record
from tests.reporting.conftest import records_of

Maker = Callable[..., Record]


def history(steps: int, every: int = 10, evaluate: int = 50, broken: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for step in range(every, steps + 1, every):
        loss = math.nan if step in broken else 2 + 6 * math.exp(-step / steps)
        entries.append({"loss": loss, "learning_rate": 3e-4, "epoch": 0.1, "step": step})
        if step % evaluate == 0:
            entries.append({"eval_loss": math.inf if step in broken else loss + 0.1, "epoch": 0.1, "step": step})
    entries.append({"train_runtime": 1.0, "train_loss": 3.0, "step": steps})
    return entries


def marked_steps(figure: Figure, panel: int = 0) -> list[float]:
    return [float(line.get_xdata()[0]) for line in figure.axes[panel].lines if line.get_gid() == "operation"]


def labels(figure: Figure) -> list[Text]:
    return [text for text in figure.axes[0].texts if text.get_gid() == "operation label"]


def foot(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def line(figure: Figure, name: str) -> list[tuple[float, float]]:
    (found,) = (line for line in figure.axes[0].lines if str(line.get_label()).startswith(name))
    return [(float(x), float(y)) for x, y in zip(found.get_xdata(), found.get_ydata(), strict=True)]


def assert_clear_of_each_other(figure: Figure) -> None:
    """No label covers another, and all lie inside the picture."""
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in [*labels(figure), *figure.texts]]
    for i, box in enumerate(boxes):
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0 and box.y1 <= figure.bbox.height
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_three_operations_are_named_at_their_lines(record: Maker) -> None:
    records = [record(1, 50), record(3, 60), record(4, 150)]
    figure = losses_figure(history(200), records)
    assert marked_steps(figure) == marked_steps(figure, 1) == [50, 60, 150]
    assert [text.get_text() for text in labels(figure)] == ["change_lr 2", "freeze_layer mlp.*", "change_batch_size 2"]
    assert not figure.texts
    assert_clear_of_each_other(figure)
    assert line(figure, "training loss")[0] == (10, pytest.approx(7.707, abs=1e-3))
    assert [step for step, _ in line(figure, "evaluation loss")] == [50, 100, 150, 200]


def colors(figure: Figure) -> list[str]:
    return [str(line.get_color()) for line in figure.axes[0].lines if line.get_gid() == "operation"]


def kinds(figure: Figure) -> list[str]:
    return [text for text in figure.axes[0].get_legend_handles_labels()[1] if "chang" in text or "freez" in text]


def test_operations_on_adapters_are_architecture_changes(record: Maker, adapted: list[Phase]) -> None:
    """Also where only the adapters' numbers differ, and where a merge leaves every number as it was."""
    records = records_of(adapted)
    figure = losses_figure(history(6000, 100, 500), records)
    assert kinds(figure) == ["architecture changes"] and len(set(colors(figure))) == 1
    assert records[3].operation == "merge_lora_weights" and records[3].before == {**records[3].after, "loss": 4.5}
    plain = record(1, 50)
    kept = [{**facts, "lora_rank": 8, "lora_modules": 2} for facts in (plain.before, plain.after)]
    same, ranks = (record(1, 50, before=kept[0], after={**kept[1], "lora_rank": rank}) for rank in (8, 16))
    assert kinds(losses_figure([], [ranks])) == ["architecture changes"]
    assert kinds(losses_figure([], [plain])) == kinds(losses_figure([], [same])) == ["hyper-parameter changes"]


@pytest.mark.parametrize("number", [7, 15, 20])
@pytest.mark.parametrize("spread", [1, 1000])
def test_many_operations_are_numbered_and_explained(record: Maker, number: int, spread: int) -> None:
    records = [record(1 + i % 4, 1000 + spread * i) for i in range(number)]
    figure = losses_figure(history(30_000, 100, 500), records)
    assert marked_steps(figure) == [1000 + spread * i for i in range(number)]
    text = foot(figure)
    for i in range(number):
        assert f"step {1000 + spread * i:,}  " in text
    assert labels(figure)[-1].get_text().split("-")[-1] == str(number)
    assert_clear_of_each_other(figure)


def test_operations_at_one_step_share_a_label(record: Maker) -> None:
    figure = losses_figure(history(200), [record(1 + i % 4, 100) for i in range(10)])
    assert [text.get_text() for text in labels(figure)] == ["1", "2", "3", "4-10"]
    assert_clear_of_each_other(figure)


def test_the_panel_below_shows_parameters_and_trainable_ones(record: Maker) -> None:
    figure = losses_figure(history(200), [record(2, 100), record(3, 150)])
    curves = {str(curve.get_label()): curve for curve in figure.axes[1].lines if curve.get_gid() is None}
    assert list(curves["parameters"].get_xdata()) == [0, 100, 150, 200]
    assert list(curves["parameters"].get_ydata()) == [1_230_000, 2_020_000, 2_020_000, 2_020_000]
    assert list(curves["trainable"].get_ydata()) == [1_230_000, 2_020_000, 1_800_000, 1_800_000]
    only_growth = losses_figure(history(200), [record(2, 100)])
    assert "trainable" not in [curve.get_label() for curve in only_growth.axes[1].lines]
    assert len(losses_figure(history(200), []).axes) == 1  # no operation: the size is not known


def test_broken_losses_leave_a_gap_and_a_mark(record: Maker) -> None:
    figure = losses_figure(history(200, broken=(100,)), [])
    assert [step for step, value in line(figure, "training loss") if math.isnan(value)] == [100]
    assert [step for step, value in line(figure, "evaluation loss") if math.isnan(value)] == [100]
    assert [step for step, _ in line(figure, "NaN or infinite")] == [100, 100]
    assert not any("NaN" in str(curve.get_label()) for curve in losses_figure(history(200), []).axes[0].lines)
    low, high = figure.axes[0].get_ylim()
    assert math.isfinite(low) and math.isfinite(high)


def test_a_long_run_gets_an_average_that_skips_nan() -> None:
    figure = losses_figure(history(5000, broken=(2500,)), [])
    smooth = dict(line(figure, "training loss (thick: average)"))
    truth = {step: 2 + 6 * math.exp(-step / 5000) for step in smooth}
    assert math.isnan(smooth[2500])
    assert all(abs(smooth[step] - truth[step]) < 0.02 for step in smooth if step != 2500)


def test_series_drops_what_a_resumed_run_did_again() -> None:
    entries = [{"loss": float(step), "step": step} for step in (10, 20, 30)]
    again = [{"loss": 0.5, "step": 20}, {"loss": None, "step": 25}, {"loss": 0.4, "step": 30}, {"loss": 9.0}]
    assert series([*entries, *again], "loss") == [(10, 10), (20, 0.5), (30, 0.4)]


def test_an_evaluation_before_and_after_an_operation_at_the_same_step_both_stay() -> None:
    entries = [{"eval_loss": 4.0, "step": 50}, {"eval_loss": 4.5, "step": 50}]
    assert series(entries, "eval_loss") == [(50, 4.0), (50, 4.5)]


def test_several_evaluation_sets() -> None:
    figure = losses_figure([{"eval_books_loss": 4.0, "step": 5}, {"eval_code_loss": 3.0, "step": 5}], [])
    assert line(figure, "evaluation books loss") == [(5, 4.0)] and line(figure, "evaluation code loss") == [(5, 3.0)]


@pytest.mark.parametrize("with_operations", [False, True])
def test_nothing_to_draw_is_said(record: Maker, with_operations: bool) -> None:
    figure = losses_figure([], [record(2, 10)] if with_operations else [])
    texts = foot(figure) + "".join(text.get_text() for axes in figure.axes for text in axes.texts)
    assert ("No losses yet" if with_operations else "Nothing has been logged yet") in texts


def test_the_file_is_a_png_and_replaces_the_old_one(record: Maker, tmp_path: Path) -> None:
    path = tmp_path / "plots" / "loss.png"
    assert plot_losses([], [], path) == path
    empty = imread(path)
    plot_losses(history(200), [record(2, 100)], path)
    drawn = imread(path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert drawn.shape[1] > 1000 and np.unique(drawn.reshape(-1, drawn.shape[2]), axis=0).shape[0] > 50
    assert drawn.shape != empty.shape
    assert os.listdir(path.parent) == ["loss.png"]


def test_the_backend_of_the_application_is_left_alone(tmp_path: Path) -> None:
    code = (
        "import sys, matplotlib; matplotlib.use('svg')\n"
        "from morphing_trainer.reporting.plots import plot_losses\n"
        "plot_losses([{'loss': 1.0, 'step': 1}], [], sys.argv[1])\n"
        "assert matplotlib.get_backend() == 'svg' and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.png")], check=True, timeout=60)


def test_a_run_begins_without_it() -> None:
    """It takes about as long to import as all of this package, and draws when a run is over."""
    code = "import sys, morphing_trainer.cli.train; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
