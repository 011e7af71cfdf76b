"""`morph plot` on real runs, finished, running, resumed and damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from morphing_trainer.cli import morph, plot
from morphing_trainer.errors import ConfigError
from morphing_trainer.reporting.canvas import is_ours
from morphing_trainer.run.reading import read_run, read_runs
from tests.support import trainer
from tests.trainer.common import StopsAfter, entry


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of different lengths, the longer one interrupted and resumed from before where it had come to."""
    home = tmp_path_factory.mktemp("runs")
    trainer(home / "short", max_steps=6).train()
    schedule = [entry("stack_layers", 2, 3), entry("set_lr", 1e-3, 4)]
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "eval_steps": 2, "logging_steps": 1}
    trainer(home / "long", schedule, callbacks=[StopsAfter(9)], **options).train()
    trainer(home / "long", schedule, **options).train(str(home / "long" / "checkpoint-6"))
    trainer(home / "blind", max_steps=4, eval_strategy="no", eval_steps=None).train()
    return home


@pytest.fixture
def runs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert morph.main(["plot", *argv]) == 2
    return capsys.readouterr().err


def test_a_resumed_run_is_read_as_it_is(runs: Path) -> None:
    """Its journal tells of an operation that was undone and done again, its log of steps that were."""
    found = read_run(runs / "long")
    assert [(record.operation, record.step) for record in found.records] == [("stack_layers", 3), ("set_lr", 7)]
    steps = [line["step"] for line in found.lines if "loss" in line]
    assert steps == list(range(1, 13))
    assert found.stages == {"train": 0} and found.timing["forward/backward"] > 0


def test_one_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plot.main([str(runs / "long"), "--x", "all", "--profile"]) == 0
    folder = runs / "long" / "plots"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        f"{n}.{kind}" for n in ("steps", "tokens", "seconds", "flops", "profile") for kind in ("png", "svg")
    }
    assert imread(folder / "steps.png").shape[1] > 1000
    assert (folder / "steps.svg").read_text().startswith("<?xml")
    said = capsys.readouterr().out
    assert "runs/long/plots/steps.png" in said and "long: has logged no accuracy" in said and "time: " in said
    before = (folder / "steps.svg").read_bytes()
    assert plot.main([str(runs / "long")]) == 0  # its own pictures are replaced
    assert (folder / "steps.svg").read_bytes() == before


def test_several_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [str(runs / name) for name in ("short", "long", "blind")]
    assert plot.main([*argv, "--x", "tokens", "steps"]) == 0
    assert {path.name for path in Path().glob("comparison*")} == {
        f"comparison-{axis}.{kind}" for axis in ("tokens", "steps") for kind in ("png", "svg")
    }
    assert "blind: has logged no evaluation\n" in capsys.readouterr().out


def test_where_pictures_go(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = str(runs / "long")
    for argv, expected in (
        (["-o", "a.png"], {"a.png"}),
        (["-o", "new/b.svg", "--x", "steps", "tokens"], {"new/b-steps.svg", "new/b-tokens.svg"}),
        (["-o", "c", "--format", "png"], {"c-steps.png"}),
        (["-o", "folder/", "--format", "svg", "png"], {"folder/steps.svg", "folder/steps.png"}),
    ):
        assert plot.main([long, *argv]) == 0
        said = capsys.readouterr().out.splitlines()
        assert {line for line in said if Path(line).is_file()} == expected
    assert ".jpg: pictures are written as png or svg" in error(capsys, long, "-o", "x.jpg")
    assert "--format says svg" in error(capsys, long, "-o", "x.png", "--format", "svg")


def test_what_is_no_picture_of_ours_stays(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long, mine = str(runs / "long"), Path("mine.png")
    mine.write_bytes(b"\x89PNG\r\n\x1a\n of somebody else")
    assert "mine.png exists and is no picture that morph plot has drawn" in error(capsys, long, "-o", "mine.png")
    assert mine.read_bytes().endswith(b"somebody else") and not is_ours(mine)
    Path("also-tokens.svg").write_text("<svg>drawn by hand</svg>")
    assert "also-tokens.svg exists" in error(capsys, long, "-o", "also", "--x", "steps", "tokens")
    assert not Path("also-steps.png").exists()  # nothing is written before all of it can be
    assert plot.main([long, "-o", "mine.png", "--overwrite"]) == 0 and is_ours(mine)
    Path("notes.svg").write_text("what I think of morphing_trainer")
    assert "notes.svg exists" in error(capsys, long, "-o", "notes.svg")
    Path("e-steps.png").mkdir()
    assert "e-steps.png is a folder" in error(capsys, long, "-o", "e", "--format", "png", "--overwrite")


def test_a_run_that_is_training_is_drawn(runs: Path) -> None:
    """No checkpoint, no end, and a line that is just being written."""
    history = runs / "short" / "stats" / "history.jsonl"
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:3]) + '{"loss": 1.')
    (runs / "short" / "stats" / "overall.json").unlink()
    assert plot.main([str(runs / "short")]) == 0
    assert len(read_run(runs / "short").lines) == 3


def test_the_stage_that_has_just_begun_is_known_from_the_log(runs: Path) -> None:
    history = runs / "short" / "stats" / "history.jsonl"
    with history.open("a") as file:
        file.write(json.dumps({"step": 8, "loss": 1.0, "stage": "talk"}) + "\n")
    assert read_run(runs / "short").stages == {"train": 0, "talk": 6}


def test_a_run_of_an_older_version_is_drawn_from_its_checkpoint(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(runs / "long" / "stats")
    (runs / "long" / "checkpoint-12" / "trainer_state.json").write_text("{ damaged")
    assert [line["step"] for line in read_run(runs / "long").lines][-1] == 10
    state = runs / "long" / "checkpoint-10" / "trainer_state.json"
    data = json.loads(state.read_text())
    for line in data["log_history"]:
        line.pop("tokens", None)
    state.write_text(json.dumps(data))
    assert plot.main([str(runs / "long")]) == 0
    said = error(capsys, str(runs / "long"), "--x", "steps", "tokens")
    assert "its log lines have no 'tokens'" in said and "--x steps works" in said
    assert "has no timing yet" in error(capsys, str(runs / "long"), "--profile")


def test_a_checkpoint_is_drawn(runs: Path) -> None:
    found = read_run(runs / "long" / "checkpoint-10")
    assert found.lines[-1]["step"] == 10 and len(found.records) == 2


def test_names_tell_runs_apart(runs: Path) -> None:
    shutil.copytree(runs / "short", runs / "other" / "short")
    assert [run.name for run in read_runs([str(runs / "short"), str(runs / "other" / "short")])] == [
        "runs/short",
        "other/short",
    ]
    with pytest.raises(ConfigError, match="is named twice"):
        read_runs([str(runs / "short"), f"{runs}/./short/"])


def test_what_is_no_run_is_refused_in_words(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = error(capsys, "runs/shrot")
    assert "there is no such folder" in said and "did you mean 'short'?" in said
    Path("empty").mkdir()
    assert "is not the folder of a run" in error(capsys, "empty")
    Path("file").touch()
    assert "is a file" in error(capsys, "file")
    Path("fresh").mkdir()
    (Path("fresh") / "journal.jsonl").touch()
    assert "has not logged anything yet" in error(capsys, "fresh")
    (runs / "long" / "journal.jsonl").write_text("no journal\nat all\n")
    assert "journal.jsonl:1: is not a journal line" in error(capsys, str(runs / "long"))
    assert morph.main(["plot", "runs/short", "--x", "hours"]) == 2
    assert "invalid choice: 'hours'" in capsys.readouterr().err
    assert plot.main(["--help"]) == 0
