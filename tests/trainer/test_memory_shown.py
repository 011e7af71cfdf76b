"""Memory and processor load in the log lines and on the display."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from morphing_trainer import MorphingConfig
from morphing_trainer.errors import ConfigError
from morphing_trainer.reporting.console import Status
from tests.support import trainer
from tests.trainer.program import Job, complete

FIGURES = {"memory/process_gib", "memory/system_percent", "cpu_percent"}


def test_every_training_loss_is_logged_with_them(tmp_path: Path) -> None:
    run = trainer(tmp_path, logging_steps=5)
    run.train()
    lines = [line for line in run.state.log_history if "loss" in line]
    assert [line["step"] for line in lines] == [5, 10]
    for line in lines:
        assert line.keys() >= FIGURES
        assert 0.05 < line["memory/process_gib"] < 50
        assert 0 < line["memory/system_percent"] < 100
    others = [line for line in run.state.log_history if "loss" not in line]
    assert others and not any(FIGURES & line.keys() for line in others)


def test_they_can_be_left_out(tmp_path: Path) -> None:
    run = trainer(tmp_path, log_memory=False)
    run.train()
    assert not any(FIGURES & line.keys() for line in run.state.log_history)


def test_off_a_terminal_every_line_of_progress_has_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path, max_steps=3).train()
    lines = [line for line in capsys.readouterr().out.splitlines() if "loss" in line and "grad norm" in line]
    assert len(lines) == 3
    assert all(re.search(r", mem \d+\.\d/[\d.]+ GiB, cpu \d+%,", line) for line in lines)
    assert "mem " in (tmp_path / "logs" / "train.log").read_text()


def test_on_a_terminal_they_stand_among_the_figures() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    console.print(Status(step=1, total=2, loss=3.0, memory=[("mem", "1.2/24 GiB"), ("cpu", "97%")]))
    assert "mem 1.2/24 GiB   cpu 97%" in console.file.getvalue()  # type: ignore[attr-defined]


def test_of_several_processes_the_most_and_each(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 3}
    job = complete(Job(tmp_path / "run", [], options=saving), 2)
    state = json.loads((job.folder / "checkpoint-3" / "trainer_state.json").read_text())
    line = next(line for line in state["log_history"] if "loss" in line)
    each = [line["memory/process_gib/rank_0"], line["memory/process_gib/rank_1"]]
    assert line["memory/process_gib"] == max(each)
    assert min(each) > 0.05


@pytest.mark.parametrize("value", [-1, 100.1, float("nan")])
def test_a_threshold_must_be_a_share(tmp_path: Path, value: float) -> None:
    with pytest.raises(ConfigError, match="memory_pressure_percent: must be from 0 to 100, is"):
        MorphingConfig(str(tmp_path), memory_pressure_percent=value)
