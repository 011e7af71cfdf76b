"""`morph compare` on real runs, and on what cannot be compared."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from rich.console import Console

from morphing_trainer.cli import morph
from morphing_trainer.flops import flops_per_token
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.reporting.contest import contest
from morphing_trainer.reporting.contest_tables import contest_view
from morphing_trainer.run.contestants import contestants
from tests.support import LENGTH, tiny_model, trainer
from tests.trainer.common import StopsAfter, entry

AXES = ("steps", "tokens", "seconds", "flops")
GROWS = [entry("stack_layers", 2, 3, reevaluate=True), entry("freeze_layer", "attn.0", 3)]
SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "eval_steps": 2, "logging_steps": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that grow (and resume), do not, do not evaluate, and have another vocabulary."""
    home = tmp_path_factory.mktemp("runs")
    trainer(home / "grown", GROWS, callbacks=[StopsAfter(8)], **SAVING).train()
    trainer(home / "grown", GROWS, **SAVING).train(str(home / "grown" / "checkpoint-6"))
    trainer(home / "plain", model=tiny_model(n_layer=4), eval_steps=2, max_steps=9).train()
    trainer(home / "blind", max_steps=6, eval_strategy="no", eval_steps=None).train()
    trainer(home / "other", model=tiny_model(vocab_size=48), eval_steps=3, max_steps=6).train()
    return home


@pytest.fixture
def runs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def compared(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert morph.main(["compare", *argv]) == 0
    return capsys.readouterr().out


def facts(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(compared(capsys, *argv, "--json"))
    return found


def error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert morph.main(["compare", *argv]) == 2
    return capsys.readouterr().err


def test_operations_are_counted_exactly(runs: Path) -> None:
    """What grown has computed: two blocks for 3 steps, four for 3, and then without the first block's attention."""
    (grown, plain), sizes, remarks = contestants(["runs/grown", "runs/plain"], flops=True)
    assert not remarks
    two, four = ModelSpec.of(tiny_model()), ModelSpec.of(tiny_model(n_layer=4))
    frozen = four.evolve([name for name in four.shapes if name.startswith("transformer.h.0.attn")])
    costs = [flops_per_token(spec, LENGTH) for spec in (two, four, frozen)]
    assert costs[0] < costs[2] < costs[1]
    at = {int(line["step"]): line for line in grown.lines if "loss" in line}
    tokens = {step: float(line["tokens"]) for step, line in at.items()}
    expected = costs[0] * tokens[3] + costs[1] * (tokens[6] - tokens[3]) + costs[2] * (tokens[12] - tokens[6])
    assert at[12]["total_flos"] == pytest.approx(expected, rel=1e-12)
    assert at[2]["total_flos"] == costs[0] * tokens[2]
    assert plain.lines[-1]["total_flos"] == costs[1] * plain.lines[-1]["tokens"]
    assert sizes == {"grown": four.parameters, "plain": four.parameters}


def test_real_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, "runs/grown", "runs/plain")
    assert found["loss"] == "eval_loss" and found["equal"]["steps"] == 9
    history = (runs / "plain" / "stats" / "history.jsonl").read_text().splitlines()
    measured = [line["eval_loss"] for line in map(json.loads, history) if "eval_loss" in line]
    plain = found["runs"][1]
    assert plain["best"] == min(measured) and plain["last"] == measured[-1]
    assert found["target"] == max(each["best"] for each in found["runs"])
    for axis in AXES:
        places = {each["run"]: each["reached"][axis]["x"] for each in found["runs"]}
        assert found["first"][axis] == [min(places, key=lambda name: places[name])]
        least = min(places.values())
        assert all(each["reached"][axis]["ratio"] == places[each["run"]] / least for each in found["runs"])
    said = compared(capsys, "runs/grown", "runs/plain", "-o", "new/picture.png")
    assert said.startswith("2 runs\n") and "evaluation loss after equal" in said and "*" in said
    assert said.endswith("new/picture.png\n") and imread("new/picture.png").shape[1] > 1000
    assert "FLOPs" not in compared(capsys, "runs/grown", "runs/plain", "--x", "steps")


def test_on_a_terminal_it_fits(runs: Path) -> None:
    found, _, _ = contestants(["runs/grown", "runs/plain", "runs/blind"], flops=True)
    for width in (80, 120):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(contest_view(contest(found, AXES, "eval_loss")))
        shown = console.export_text().splitlines()
        assert all(len(line) <= width for line in shown)
        assert any(line.split()[:1] == ["blind"] and "-" in line for line in shown)


def test_runs_without_evaluations(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = compared(capsys, "runs/grown", "runs/plain", "runs/blind")
    assert "blind: has logged no evaluation; --loss training compares all runs" in said
    both = facts(capsys, "runs/grown", "runs/blind")
    assert both["loss"] == "loss" and "only grown has logged an evaluation" in both["remarks"][0]
    assert facts(capsys, "runs/grown", "runs/plain", "runs/blind", "--loss", "training")["first"]


def test_vocabularies_are_told_apart(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "vocabularies differ (grown 32, other 48)" in compared(capsys, "runs/grown", "runs/other")
    assert "vocabular" not in compared(capsys, "runs/grown", "runs/plain")


def test_damage_costs_what_is_damaged(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the journal has a gap, its models are not known: no figure is better than a wrong one."""
    journal, history = runs / "grown" / "journal.jsonl", runs / "plain" / "stats" / "history.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([lines[0], "{", *lines[2:]]) + "\n")
    logged = history.read_text().splitlines()
    history.write_text("\n".join([*logged[:3], "?", *logged[3:]]) + "\n")
    found = facts(capsys, "runs/grown", "runs/plain")
    assert "flops" not in found["runs"][0]["ends"] and "flops" in found["runs"][1]["ends"]
    assert "flops" not in found["first"] and found["first"]["steps"]
    remarks = "\n".join(found["remarks"])
    assert "grown: its FLOPs are not known: its journal is damaged" in remarks
    assert "plain: damaged: stats/history.jsonl: 1 line is damaged and left out" in remarks
    with history.open("a") as file:  # places that are none
        file.write(f'{{"step": 9, "loss": 1.0, "tokens": 1{400 * "0"}, "seconds": "nan", "total_flos": "inf"}}\n')
    assert facts(capsys, "runs/grown", "runs/plain")["runs"][1]["ends"] == found["runs"][1]["ends"]
    journal.unlink()
    shutil.rmtree(runs / "grown" / "stats")
    assert facts(capsys, "runs/grown", "runs/plain")["first"]["steps"], "what its newest checkpoint knows"


def test_names_tell_runs_apart(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs / "plain", runs / "twin" / "plain")
    said = compared(capsys, "runs/plain", "runs/twin/plain")
    assert "runs/plain" in said and "twin/plain" in said
    assert "by steps: runs/plain and twin/plain at once" in said


def test_bad_input(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = ("runs/grown", "runs/plain")
    assert "is named twice" in error(capsys, "runs/plain", "runs/./plain")
    assert "did you mean 'plain'?" in error(capsys, "runs/plan", "runs/grown")
    assert "give two runs or more" in error(capsys, "runs/plain")
    assert "must be a finite number" in error(capsys, *both, "--at-loss", "nan")
    assert ".jpg: pictures are written as png or svg" in error(capsys, *both, "-o", "x.jpg")
    Path("mine.png").write_text("mine")
    assert "is no picture that morph compare has drawn" in error(capsys, *both, "-o", "mine.png")
    assert Path("mine.png").read_text() == "mine"
    compared(capsys, *both, "-o", "mine.png", "--overwrite")
    compared(capsys, *both, "-o", "mine.png")  # its own are replaced
    Path("fresh").mkdir()
    (Path("fresh") / "journal.jsonl").touch()
    assert "has not logged anything yet" in error(capsys, "runs/plain", "fresh")
