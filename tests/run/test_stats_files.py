from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from morphing_trainer.errors import ConfigError
from morphing_trainer.run.history import append_history, begin_history, read_history
from morphing_trainer.run.statistics import Totals
from morphing_trainer.run.stats_files import file_name, statistics_files, validation_statistics, write_statistics

FIRST = Totals(steps=10, samples=40, tokens=640, dropped=2, loss_sum=1200.0, loss_tokens=600, seconds=5.0)
SECOND = Totals(steps=5, samples=20, tokens=320, loss_sum=300.0, loss_tokens=300, seconds=2.0)


def line(step: int, stage: str, **metrics: float) -> dict[str, Any]:
    return {"step": step, "stage": stage, **metrics}


LINES = [
    line(5, "books", loss=4.0),
    line(5, "books", eval_loss=3.0, eval_token_accuracy=0.2, eval_runtime=1.0),
    line(10, "books", eval_loss=3.5, eval_token_accuracy=0.1),
    line(15, "talk", eval_loss=math.nan, eval_token_accuracy=0.3),
]


def files(**changes: Any) -> dict[str, dict[str, Any]]:
    options = {"stages": {"books": 0, "talk": 10}, "seconds": 9.0, "profile": {"data": 1.0, "optimizer": 3.0}}
    return statistics_files({"books": FIRST, "talk": SECOND}, LINES, **{**options, **changes})


def test_overall_and_every_stage() -> None:
    found = files()
    assert list(found) == ["overall.json", "books.json", "talk.json"]
    overall = found["overall.json"]
    assert overall["stage"] == "talk" and overall["stages"] == {"books": 0, "talk": 10}
    assert overall["train"] == {
        "steps": 15,
        "samples": 60,
        "tokens": 960,
        "dropped_samples": 2,
        "loss": 1500 / 900,
        "loss_tokens": 900,
        "seconds": 9.0,
    }
    assert found["books.json"]["train"]["loss"] == 2.0 and found["books.json"]["train"]["seconds"] == 5.0
    assert overall["timing"] == {
        "data": {"seconds": 1.0, "share": 0.25},
        "optimizer": {"seconds": 3.0, "share": 0.75},
    }


def test_last_and_best_of_every_metric() -> None:
    found = files()
    assert found["books.json"]["validation"] == {
        "evaluations": 2,
        "loss": {"last": 3.5, "last_step": 10, "best": 3.0, "best_step": 5},
        "token_accuracy": {"last": 0.1, "last_step": 10, "best": 0.2, "best_step": 5},  # the higher, the better
    }
    overall = found["overall.json"]["validation"]
    assert overall["loss"]["best_step"] == 5 and math.isnan(overall["loss"]["last"])
    assert overall["token_accuracy"] == {"last": 0.3, "last_step": 15, "best": 0.3, "best_step": 15}
    talk = found["talk.json"]["validation"]["loss"]
    assert talk["best"] is None and talk["best_step"] is None  # NaN is no best
    assert validation_statistics([]) == {"evaluations": 0}


def test_a_run_without_a_plan_has_one_stage_and_lines_without_its_name_are_its() -> None:
    lines = [{"step": 5, "eval_loss": 3.0}]
    found = statistics_files({"train": FIRST}, lines, stages={"train": 0}, seconds=1.0, profile={})
    assert list(found) == ["overall.json", "train.json"] and found["train.json"]["validation"]["evaluations"] == 1
    fresh = statistics_files({}, [], stages={"train": 0}, seconds=0.0, profile={})
    assert fresh["train.json"]["train"]["loss"] is None


def test_stage_names_become_file_names() -> None:
    assert file_name("wiki text/2", {}) == "wiki_text_2.json"
    assert file_name("overall", {"overall.json": 1}) == "overall-2.json"
    assert file_name("..", {}) == "stage.json"


def test_files_are_whole_and_hold_plain_json(tmp_path: Path) -> None:
    write_statistics(tmp_path / "stats", files())
    assert sorted(path.name for path in (tmp_path / "stats").iterdir()) == ["books.json", "overall.json", "talk.json"]

    def strictly(text: str) -> Any:
        raise AssertionError(f"{text} is no JSON")

    data = json.loads((tmp_path / "stats" / "overall.json").read_text(), parse_constant=strictly)
    assert data["validation"]["loss"]["last"] == "nan"


def test_log_lines_are_appended_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "stats" / "history.jsonl"
    begin_history(path, [{"step": 1, "loss": 2.0}])
    append_history(path, {"step": 2, "loss": math.inf, "stage": "books", "grad_norm": None})
    first, second = read_history(path)
    assert first == {"step": 1, "loss": 2.0}
    assert second == {"step": 2, "loss": math.inf, "stage": "books", "grad_norm": None}
    begin_history(path, [{"step": 1}])
    assert read_history(path) == [{"step": 1}]


def test_a_line_that_is_being_written_is_left_out_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_history(path) == [{"step": 1}]
    path.write_text('{"step": 1}\n[2]\n{"step": 3}\n')
    with pytest.raises(ConfigError, match=r"history\.jsonl:2: is not a log line"):
        read_history(path)
