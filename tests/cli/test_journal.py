"""`morph journal` on real runs: resumed, rolled back, damaged."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from morphing_trainer.cli import morph
from morphing_trainer.reporting.journal import events_table, journal_table
from morphing_trainer.run.changes import changes_of
from morphing_trainer.run.salvage import salvaged_journal
from tests.support import trainer
from tests.trainer.common import StopsAfter, entry

SCHEDULE = [entry("stack_layers", 2, 3, reevaluate=True), entry("set_lr", 1e-3, 4)]
SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "eval_steps": 2, "logging_steps": 1}
GUARD = {"max_loss_increase": 0.0, "within_steps": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was resumed from before where it had come to, one with an operation undone, one without any."""
    home = tmp_path_factory.mktemp("runs")
    trainer(home / "resumed", SCHEDULE, callbacks=[StopsAfter(9)], **SAVING).train()
    trainer(home / "resumed", SCHEDULE, **SAVING, learning_rate=5e-3).train(str(home / "resumed" / "checkpoint-6"))
    guarded = [entry("widen_mlp", 2, 2), entry("set_lr", 50.0, 3, guard=GUARD), entry("change_lr", 0.5, 2)]
    trainer(home / "undone", guarded, **SAVING).train()
    trainer(home / "plain", max_steps=2).train()
    return home


@pytest.fixture
def runs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def told(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    capsys.readouterr()
    assert morph.main(["journal", *argv]) == code
    return capsys.readouterr().out


def objects(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line) for line in told(capsys, *argv, "--json", code=code).splitlines()]


def test_what_was_done_twice_counts_once(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = [json.loads(line) for line in (runs / "resumed" / "journal.jsonl").read_text().splitlines()]
    assert [event["index"] for event in raw if event["event"] == "operation"] == [0, 1, 1]
    heading, header, *rows = told(capsys, "runs/resumed").splitlines()
    assert heading == "2 operations applied"
    assert header.split("  ")[0] == "step" and header.endswith("moments")
    assert len(rows) == 3 and rows[0].startswith("3 ") and rows[1].startswith("7 ")
    assert "layers 2 -> 4" in rows[0] and "7.36k -> 13.9k" in rows[0] and "13.9k carried" in rows[0]
    last = [event for event in raw if event["event"] == "operation"][-1]
    assert f"{last['record']['before']['loss']:.4g}"[:4] in rows[1]
    found = objects(capsys, "runs/resumed")
    assert [(each["operation"], each["step"]) for each in found] == [("stack_layers", 3), ("set_lr", 7)]
    assert found[1]["time"] == last["time"] and found[1]["rolled_back"] is None


def test_a_loss_measured_later_is_marked(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`stack_layers` was evaluated at once, `set_lr` after another step."""
    rows = told(capsys, "runs/resumed").splitlines()
    assert "*" not in rows[2] and "* " in rows[3] and rows[4].startswith("* at the next evaluation")
    first, second = objects(capsys, "runs/resumed")
    assert first["after"]["loss"] is not None and first["evaluated_later"] is None
    assert second["after"]["loss"] is None and second["evaluated_later"] > 0


def test_what_was_undone_says_so(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = told(capsys, "runs/undone").splitlines()
    assert said[0] == "2 operations applied, 1 undone"
    assert "set_lr 50 (undone)" in said[3] and "lr " in said[3] and " -> 50" in said[3]
    assert any(line.startswith("step 5: set_lr: evaluation loss") for line in said)
    found = objects(capsys, "runs/undone")
    assert [bool(each["rolled_back"]) for each in found] == [False, True, False]
    assert found[1]["rolled_back"]["until"] <= 8 and found[1]["rolled_back"]["limit"] is not None


def test_all_events(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = told(capsys, "runs/resumed", "--all").splitlines()
    names = [line.split()[3] for line in said[1:]]
    assert names[0] == "start" and names[-1] == "end" and names.count("operation") == 2
    assert "resume" in names and "override" in names
    (override,) = (line for line in said if " override " in line)
    assert "learning_rate: 0.01000 -> 0.005000" in override
    (resumed,) = (line for line in said if " resume " in line)
    assert "checkpoint checkpoint-6" in resumed
    found = objects(capsys, "runs/resumed", "--all")
    assert [event["event"] for event in found] == names and "spec" in found[0]
    (undone,) = (line for line in told(capsys, "runs/undone", "--all").splitlines() if "rolled_back" in line)
    assert "set_lr: evaluation loss" in undone


def test_a_run_without_operations(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "runs/plain") == "No operation was applied.\n"
    assert objects(capsys, "runs/plain") == []
    (runs / "plain" / "journal.jsonl").write_text("")
    assert told(capsys, "runs/plain", "--all") == "The journal is empty.\n"


def test_the_journal_of_a_checkpoint(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = max((runs / "undone").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert told(capsys, str(saved)).startswith("2 operations applied, 1 undone")


def test_damage_is_named_and_the_rest_is_shown(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = runs / "resumed" / "journal.jsonl"
    lines = path.read_text().splitlines()
    torn = json.loads(lines[1])
    torn["record"]["before"]["layers"] = "two"
    path.write_text(
        "\n".join([lines[0], json.dumps(torn), "what?", '{"event": "resume", "step": 2}', *lines[2:]]) + "\n"
    )
    capsys.readouterr()
    assert morph.main(["journal", "runs/resumed"]) == 1
    captured = capsys.readouterr()
    assert "set_lr 1e-3" in captured.out and "stack_layers" not in captured.out
    assert "journal.jsonl: 3: is not a journal line" in captured.err
    assert "event 2 (operation): is not one that this library wrote" in captured.err
    assert "(resume): does not say how many operations are done" in captured.err
    path.unlink()
    assert morph.main(["journal", "runs/resumed"]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("2 operations applied") and "the copy in checkpoint-12" in captured.err


def test_on_a_terminal_it_fits(runs: Path) -> None:
    found = salvaged_journal(runs / "undone")
    changes = changes_of(found.events, found.told)
    for width in (80, 110, 160):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(journal_table(changes), events_table(found.events))
        shown = console.export_text()
        assert all(len(line) <= width for line in shown.splitlines())
        for text in ("widen_mlp 2", "set_lr 50 (undone)", "change_lr 0.5", "carried"):
            assert text in shown, width
        assert ("moments" in shown.splitlines()[2]) == (width == 160)


def test_bad_input(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, message in (("runs/resume", "did you mean 'resumed'?"), ("runs", "runs are in it: plain, resumed")):
        assert morph.main(["journal", folder]) == 2
        assert message in capsys.readouterr().err
