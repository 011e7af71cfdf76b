"""`morph report`, and the page that a run leaves behind: real runs, in every state, and their own files."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import pytest
from transformers import TrainerCallback

from morphing_trainer.cli import morph, train
from morphing_trainer.errors import NotFiniteError
from morphing_trainer.flops import flops_per_token
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.reporting.console import count, loss_text, scaled_text
from morphing_trainer.run.folder import is_report
from tests.reporting.report.support import all_of, figure, pairs, read, rows, section, words
from tests.support import staged_data, trainer
from tests.trainer.common import StopsAfter, entry
from tests.trainer.program import Job, finish, newest, start, wait_until

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "eval_steps": 2, "logging_steps": 1}
TEXT = "Grow a small <b>model</b> while it trains, and carry its memory along.\n" * 60
SMALL = ["--n_layer", "1", "--n_embd", "16", "--n_head", "2", "--vocab_size", "300", "--block_size", "16"]
QUICK = ["--max_steps", "12", "--per_device_train_batch_size", "2", "--use_cpu", "--seed", "1", "--logging_steps", "1"]
EVALUATING = ["--eval_strategy", "steps", "--eval_steps", "3", "--eval_iters", "2", "--save_strategy", "steps"]
GROWS = [
    entry("stack_layers", 2, 3, reevaluate=True, desc="twice <as> deep"),
    entry("set_attn_lora_rank", 2, 2),
    entry("freeze_layer", "wte", 2),
    entry("set_batch_size", 4, 1),
    entry("widen_mlp", 2, 100),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from the command line, and some that are made otherwise, or end otherwise."""
    home = tmp_path_factory.mktemp("runs")
    (home / "text.txt").write_text(TEXT)
    (home / "schedule.json").write_text(json.dumps(GROWS))
    command = ["--output_dir", str(home / "grown"), "--train_file", str(home / "text.txt"), *SMALL, *QUICK, *EVALUATING]
    assert train.main([*command, "--scaling_schedule_file", str(home / "schedule.json"), "--save_steps", "6"]) == 0
    with pytest.raises(NotFiniteError):
        trainer(home / "failed", **{**SAVING, "learning_rate": 1e30, "max_steps": 9}).train()
    guard = {"max_loss_increase": 0.0, "within_steps": 2}
    schedule = [entry("stack_layers", 2, 2), entry("change_lr", 60.0, 2, guard=guard)]
    trainer(home / "undone", schedule, **SAVING).train()
    trainer(home / "blind", max_steps=3, eval_strategy="no", eval_steps=None, logging_steps=50).train()
    trainer(home / "stages", stages=staged_data(), eval_steps=4, report_to="none").train()
    return home


@pytest.fixture
def runs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def reported(folder: Path | str) -> Element:
    """The page that `morph report` writes now."""
    assert morph.main(["report", str(folder)]) == 0
    return page(Path(folder) / "report.html")


def page(path: Path) -> Element:
    assert is_report(path)
    return read(path.read_text())


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "stats" / "history.jsonl").read_text().splitlines()]


def journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def test_the_page_says_what_the_files_of_the_run_say(runs: Path) -> None:
    folder = runs / "grown"
    tree, lines, events = reported(folder), history(folder), journal(folder)
    measured = [(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line]
    trained = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    best = min(measured, key=lambda point: point[1])
    assert figure(tree, "Evaluation loss")[0] == loss_text(measured[-1][1])
    told = figure(tree, "Evaluation loss") if best[1] == measured[-1][1] else figure(tree, "Best evaluation loss")
    assert told[0] == loss_text(best[1])
    assert figure(tree, "Training loss")[0] == loss_text(trained[-1][1])
    assert figure(tree, "Steps") == ("12", "all of them")
    tokens = max(line["tokens"] for line in lines)
    assert figure(tree, "Tokens")[0] == count(tokens)
    operations = [event for event in events if event["event"] == "operation"]
    begins = [0, *(event["record"]["tokens"] for event in operations), tokens]
    specs = [ModelSpec.from_dict(event["spec"]) for event in events if event["event"] in ("start", "operation")]
    flops = sum(
        (end - begin) * flops_per_token(spec, 16)
        for begin, end, spec in zip(begins[:-1], begins[1:], specs, strict=True)
    )
    assert figure(tree, "Computation") == (f"{scaled_text(flops)}FLOP", "counted from the shapes of the model")
    first, last = specs[0].parameters, specs[-1].parameters
    assert figure(tree, "Parameters")[0] == f"{count(first)} \u2192 {count(last)}"
    assert figure(tree, "Operations") == ("4", "more were planned")
    dots = all_of(section(tree, "loss"), "circle", class_="dot")
    shown = {words(dot) for dot in dots} - {""}
    assert shown == {f"step {step}: evaluation loss {loss_text(loss)}" for step, loss in measured}
    (table,) = all_of(section(tree, "operations"), "table", class_="journal")
    steps = [(row[1], row[2].split()[0]) for row in rows(table)]
    assert steps == [(str(event["step"]), event["record"]["operation"]) for event in operations]
    assert "twice <as> deep" in words(table)
    phases = all_of(section(tree, "network"), "li", class_="phase")
    assert [words(each).split(" end loss")[0].split(" ")[:5] for each in phases] == [
        *(["Start", "step", "0", "to", "3"], ["Phase", "2", "step", "3", "to"]),
        *(["Phase", "3", "step", "5", "to"], ["Phase", "4", "step", "7", "to"]),
    ]
    layers = [len(all_of(each, "rect", class_="attention")) for each in phases]
    assert layers == [1, 2, 2, 2]
    assert [len(all_of(each, "rect", class_="adapter")) for each in phases] == [0, 0, 2, 2]
    assert [len(all_of(each, "rect", class_="held")) for each in phases] == [0, 0, 2, 3]


def test_what_the_run_was_told_and_what_it_wrote(runs: Path) -> None:
    tree = reported(runs / "grown")
    arguments = {name: value for listed in all_of(section(tree, "config"), "dl") for name, value in pairs(listed)}
    told = {"max_steps": "12", "n_layer": "1", "n_embd": "16", "block_size": "16", "learning_rate": "5e-5", "seed": "1"}
    assert {name: arguments[name] for name in told} == told and arguments["train_file"].endswith("/text.txt]")
    assert arguments["per_device_train_batch_size"] == "2", "as given, though an operation changed it"
    (table,) = all_of(section(tree, "samples"), "table")
    assert [row[0] for row in rows(table)] == ["3", "6", "9", "12"]
    assert "Grow a small <b>model" in words(section(tree, "samples")), "as text"
    code = words(section_of_class(tree, "next"))
    assert 'AutoModelForCausalLM.from_pretrained("runs/grown/model")' in code and "AutoTokenizer" in code
    assert "torch" in words(all_of(tree, "footer")[0])
    names = [words(row[0]) for row in [all_of(row, "th") for row in all_of(section(tree, "time"), "tr")][1:]]
    assert {"forward/backward", "evaluation"} <= set(names)
    assert [row[4] for row in rows(all_of(section(tree, "schedule"), "table")[0])] == [
        *("step 3", "step 5", "step 7", "step 8", "not applied")
    ]


def section_of_class(tree: Element, name: str) -> Element:
    (found,) = all_of(tree, "section", class_=name)
    return found


def test_a_run_writes_it_when_it_ends(runs: Path, made: Path) -> None:
    """Whole with the model's place, which is saved last; the same as `morph report` writes now, byte for byte."""
    written = (made / "grown" / "report.html").read_bytes()
    assert morph.main(["report", str(made / "grown")]) == 0
    assert (made / "grown" / "report.html").read_bytes() == written
    assert b"from_pretrained" in written
    said = [line.split(" INFO ")[-1] for line in (made / "grown" / "logs" / "train.log").read_text().splitlines()]
    assert said[-1] == f"report in {made / 'grown' / 'report.html'}"
    for name, state in (("failed", "failed at step"), ("undone", "finished at step 12"), ("blind", "finished")):
        assert state in words(all_of(page(runs / name / "report.html"), "header")[0])
        assert f"report in {made / name / 'report.html'}" in (made / name / "logs" / "train.log").read_text()


def test_runs_of_all_kinds(runs: Path) -> None:
    failed = reported(runs / "failed")
    assert "NotFiniteError" in words(all_of(failed, "header")[0])
    assert "See to what it failed of" in words(section_of_class(failed, "next"))
    assert "counted" in figure(failed, "Computation")[1]
    undone = section(reported(runs / "undone"), "operations")
    assert "change_lr 60 (undone)" in words(undone) and "at most" in words(undone)
    assert figure(reported(runs / "undone"), "Operations") == ("1", "1 undone by guards")
    blind = reported(runs / "blind")
    assert "evaluation" not in words(section(blind, "loss")) and "No operation was applied" in words(blind)
    assert len(all_of(section(blind, "network"), "li", class_="phase")) == 1
    stages = words(section(reported(runs / "stages"), "loss"))
    assert "stage basics: step 0 to" in stages and "stage mixture" in stages


def test_a_run_that_trains_is_killed_and_resumed(tmp_path: Path) -> None:
    options = {**SAVING, "max_steps": 400, "eval_steps": 10}
    job = Job(tmp_path / "run", [entry("stack_layers", 2, 2), entry("widen_mlp", 2, 300)], pause=0.02, options=options)
    (process,) = start(job)
    wait_until(lambda: newest(job) >= 6)
    tree = reported(job.folder)
    assert "running" in words(all_of(tree, "header")[0]) and str(process.pid) not in words(tree).split()
    assert figure(tree, "Operations") == ("1", "more are to come")
    process.kill()
    finish([process])
    tree = reported(job.folder)
    assert "killed after step" in words(all_of(tree, "header")[0])
    assert "--resume_from_checkpoint true" in words(section_of_class(tree, "next"))
    again = Job(
        tmp_path / "run", job.schedule, resume=True, signals=[(0, newest(job) + 4, signal.SIGINT)],
        options={**options, "gradient_accumulation_steps": 2},
    )  # fmt: skip
    assert finish(start(again)) == [128 + signal.SIGINT]
    tree = page(job.folder / "report.html")
    assert "interrupted at step" in words(all_of(tree, "header")[0]), "written by the run itself"
    assert "resume" in words(section(tree, "operations"))


def test_damage_is_named_and_the_rest_is_shown(runs: Path) -> None:
    folder = runs / "grown"
    whole = reported(folder)
    for name, line in (
        ("journal.jsonl", "no event\n"),
        ("stats/history.jsonl", "{ damaged\n"),
        ("stats/examples.jsonl", "3\n"),
    ):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join([lines[0], line, *lines[1:]]))
    (folder / "stats" / "setup.json").write_text("[1, ")
    (folder / "stats" / "overall.json").write_text('{"timing": [], "stages": 3, "train": "x"}')
    (folder / "stats" / "work.json").write_text('{"phases": [[0, "x"]]}')
    tree = reported(folder)
    told = words(section_of_class(tree, "faults"))
    for name in ("journal.jsonl", "stats/history.jsonl", "stats/setup.json", "stats/examples.jsonl"):
        assert name in told
    assert figure(tree, "Evaluation loss") == figure(whole, "Evaluation loss")
    assert "estimate" in figure(tree, "Computation")[1]
    assert words(section(tree, "network")) == words(section(whole, "network"))
    shutil.rmtree(folder / "stats")
    old = reported(folder)
    assert figure(old, "Evaluation loss") == figure(whole, "Evaluation loss"), "from the checkpoint"
    assert "is not known" in words(section(old, "config"))


def test_numbers_that_are_none(runs: Path) -> None:
    folder = runs / "grown"
    with (folder / "stats" / "history.jsonl").open("a") as file:
        file.write(
            '{"step": 12, "eval_loss": "nan", "loss": 1e308, "grad_norm": "inf"}\n{"step": 12, "loss": -1e308}\n'
        )
    lines = (folder / "journal.jsonl").read_text().splitlines()
    event = next(json.loads(line) for line in lines if '"event": "operation"' in line)
    event["record"] |= {"step": 1e300, "seconds": math.inf}
    event["index"] = 9
    with (folder / "journal.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")
    progress = json.loads((folder / "stats" / "progress.json").read_text())
    (folder / "stats" / "progress.json").write_text(
        json.dumps({**progress, "model": {"parameters": "<b>", "layers": []}})
    )
    tree = reported(folder)
    assert "NaN" in figure(tree, "Evaluation loss")[0]


def test_it_never_replaces_what_is_not_its_own(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in (("mine.html", "<p>mine</p>"), ("empty.html", "")):
        Path(name).write_text(content)
        assert morph.main(["report", "runs/blind", "-o", name]) == 2
        assert "is no report" in capsys.readouterr().err and Path(name).read_text() == content
    Path("link.html").symlink_to("nowhere.html")
    assert morph.main(["report", "runs/blind", "-o", "link.html"]) == 2
    assert morph.main(["report", "runs/blind", "-o", "runs"]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert morph.main(["report", "runs/blind", "-o", "new/folder/page.html"]) == 0
    assert capsys.readouterr().out == "new/folder/page.html\n"
    assert morph.main(["report", "runs/blind", "-o", "new/folder/page.html"]) == 0, "its own, again"
    assert not list(Path("new/folder").glob(".*")), "nothing half written is left"


def test_what_is_no_run_is_refused_in_words(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    for argv, message in (
        (["runs/grwon"], "did you mean 'grown'?"),
        (["runs"], "runs are in it: "),
        (["empty"], "is not the folder of a run"),
        (["runs/grown/checkpoint-6"], "is a checkpoint; give its run"),
    ):
        assert morph.main(["report", *argv]) == 2
        assert message in capsys.readouterr().err
    assert not list(Path("empty").iterdir())


def test_a_page_that_cannot_be_written_hurts_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.html").write_text("somebody else's")
    with caplog.at_level(logging.WARNING, "morphing_trainer"):
        output = trainer(tmp_path / "run", callbacks=[StopsAfter(2)], eval_strategy="no", eval_steps=None).train()
    assert output.global_step == 2 and "report" in caplog.text and "could not be written" in caplog.text
    assert (tmp_path / "run" / "report.html").read_text() == "somebody else's"
    assert journal(tmp_path / "run")[-1]["event"] == "end"


def test_a_new_run_takes_an_old_page_away(tmp_path: Path) -> None:
    options: dict[str, Any] = {"callbacks": [StopsAfter(1)], "eval_strategy": "no", "eval_steps": None}
    trainer(tmp_path / "run", **options).train()
    (tmp_path / "run" / "report.html").write_bytes((tmp_path / "run" / "report.html").read_bytes() + b"<!-- old -->")
    looks = Looks(tmp_path / "run" / "report.html")
    options["callbacks"] = [looks, StopsAfter(1)]
    trainer(tmp_path / "run", overwrite_output_dir=True, **options).train()
    assert looks.seen == [False] and b"<!-- old -->" not in looks.path.read_bytes()


class Looks(TrainerCallback):
    """Whether a file is there as training begins."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[bool] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(self.path.exists())


@pytest.mark.parametrize("argv", [["--help"], ["runs/grown"]])
def test_nobody_waits_for_torch(runs: Path, argv: list[str]) -> None:
    program = (
        "import sys\nfrom morphing_trainer.cli import morph\n"
        f"try: morph.main(['report', *{argv!r}])\nexcept SystemExit: pass\n"
        "sys.exit(sorted({'torch', 'transformers', 'matplotlib'} & {*sys.modules}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
