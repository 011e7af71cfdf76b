"""`morph status` on real runs: finished, training, killed, failed, damaged, and none at all."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from morphing_trainer.cli import morph
from morphing_trainer.errors import NotFiniteError
from morphing_trainer.reporting.standing import standing_view
from morphing_trainer.run.folder import locked
from morphing_trainer.run.holding import holder
from morphing_trainer.run.looking import standing
from morphing_trainer.run.salvage import salvaged
from tests.support import trainer
from tests.trainer.common import StopsAfter, entry
from tests.trainer.program import Job, finish, newest, start, wait_until

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4, "eval_steps": 2, "logging_steps": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has grown and come to its end, and one that has failed."""
    home = tmp_path_factory.mktemp("runs")
    schedule = [entry("stack_layers", 2, 3), entry("set_lr", 1e-3, 4), entry("widen_mlp", 2, 50)]
    run = trainer(home / "grown", schedule, **SAVING)
    run.train()
    run.save_whole(home / "grown" / "model")
    with pytest.raises(NotFiniteError):
        trainer(home / "failed", **{**SAVING, "learning_rate": 1e30, "max_steps": 9}).train()
    return home


@pytest.fixture
def runs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def told(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    assert morph.main(["status", *argv]) == code
    return capsys.readouterr().out


def facts(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(told(capsys, *argv, "--json", code=code))
    return found


def test_a_finished_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = told(capsys, "runs/grown")
    lines = {line.split("  ")[0]: line for line in said.splitlines()}
    assert said.startswith("runs/grown: finished at step 12\n")
    assert "12 of 12 (100 %)" in lines["step"]
    assert "4 x 16, mlp 64 (layers x hidden, mlp), 13.9k parameters" in lines["model"]
    assert "2 applied" in lines["operations"] and "set_lr 1e-3 at step 7 (waited 4 steps)" in lines["last"]
    assert "widen_mlp 2: 5 of 50 steps waited" in lines["not applied"]
    assert "checkpoint-12, checkpoint-8, checkpoint-4; sound" in lines["checkpoints"]
    assert "steps/s" in lines["speed"] and "left" not in lines["speed"]
    assert said.splitlines()[-1] == "-> Nothing is left to do; its model is in runs/grown/model."
    found = facts(capsys, "runs/grown")
    assert (found["state"], found["step"], found["end"], found["process"]) == ("finished", 12, 12, None)
    history = [json.loads(line) for line in (runs / "grown/stats/history.jsonl").read_text().splitlines()]
    measured = [line["eval_loss"] for line in history if "eval_loss" in line]
    assert found["evaluation"]["loss"] == measured[-1] and found["best"]["loss"] == min(measured)
    assert found["model"]["parameters"] == history[-1].get("morph/parameters", found["model"]["parameters"])
    assert found["tokens"] == max(line["tokens"] for line in history if "tokens" in line)


def test_the_last_log_line_may_be_ahead_of_where_the_run_told_it_stood(runs: Path) -> None:
    """Which it does once a second."""
    stats = runs / "grown" / "stats"
    *_, last = map(json.loads, (stats / "history.jsonl").read_text().splitlines())
    told = json.loads((stats / "progress.json").read_text())
    behind = {"step": 1, "tokens": 64, "seconds": 0.001, "epoch": 0.01, "stage": "before"}
    (stats / "progress.json").write_text(json.dumps({**told, **behind}))
    found = standing(runs / "grown")
    assert {name: getattr(found, name) for name in behind} == {name: last[name] for name in behind}
    remains = salvaged(runs / "grown")
    assert [place["step"] for place in remains.places] == [last["step"], 1]


def test_a_run_that_trains_and_is_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {**SAVING, "max_steps": 4000, "eval_steps": 10}
    job = Job(tmp_path / "run", [entry("stack_layers", 2, 2), entry("widen_mlp", 2, 3000)], pause=0.02, options=options)
    (process,) = start(job)
    wait_until(lambda: newest(job) >= 8)
    found = facts(capsys, str(job.folder))
    assert (found["state"], found["process"], found["end"]) == ("running", process.pid, 4000)
    assert found["step"] >= 8 and found["steps_per_second"] > 0 and found["left"] > 0
    assert found["model"]["layers"] == 4 and found["next"]["operation"] == "widen_mlp"
    assert found["next"]["progress"].endswith("of 3000 steps waited")
    said = told(capsys, str(job.folder))
    assert f"running (process {process.pid})" in said and "left at this speed" in said and "ago" in said
    before = found["step"]
    wait_until(lambda: facts(capsys, str(job.folder))["step"] > before)
    process.kill()
    assert finish([process]) == [-signal.SIGKILL], "to be asked must not have ended it"
    found = facts(capsys, str(job.folder), code=1)
    saved = newest(job)
    assert (found["state"], found["process"]) == ("killed", None)
    again = f"it takes checkpoint-{saved}"
    assert "--resume_from_checkpoint true" in found["advice"][0] and again in found["advice"][0]
    if (lost := found["step"] - saved) > 1:
        assert f"{lost} steps are trained again" in found["advice"][0]


def test_a_run_that_is_killed_before_its_first_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(tmp_path / "run", [], pause=30, options={**SAVING, "max_steps": 5})
    (process,) = start(job)
    wait_until(lambda: job.begun.exists() and (job.folder / "journal.jsonl").exists())
    process.kill()
    finish([process])
    found = facts(capsys, str(job.folder), code=1)
    assert (found["state"], found["step"], found["saved"]) == ("killed", 0, [])
    assert "--resume_from_checkpoint auto" in found["advice"][0]
    assert "none yet" in told(capsys, str(job.folder), code=1)


def test_who_asks_stands_in_nobodys_way(tmp_path: Path) -> None:
    """Were the lock tried, a run that takes it in that moment would be refused."""
    stop = threading.Event()

    def asks() -> None:
        while not stop.is_set():
            holder(tmp_path)

    locked(tmp_path).release()
    threads = [threading.Thread(target=asks) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(60):
            lock = locked(tmp_path)  # refused, if anybody else had it
            assert holder(tmp_path) == os.getpid()
            lock.release()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert holder(tmp_path) is None
    assert holder(tmp_path / "nowhere") is None


def test_runs_that_have_stopped(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, "runs/failed", code=1)
    assert found["state"] == "failed" and "NotFiniteError" in found["ended"]["error"]
    assert "See to what it failed of" in found["advice"][0]
    assert "on_nan" in told(capsys, "runs/failed", code=1)
    job = Job(
        tmp_path / "stopped", [], signals=[(0, 5, signal.SIGTERM)], options={**SAVING, "gradient_accumulation_steps": 2}
    )
    assert finish(start(job)) == [128 + signal.SIGTERM]
    capsys.readouterr()
    found = facts(capsys, str(job.folder), code=1)
    assert (found["state"], found["step"]) == ("interrupted", 5)
    assert "it takes checkpoint-5)" in found["advice"][0]
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "journal.jsonl").touch()
    assert facts(capsys, "fresh", code=1)["state"] == "not begun"
    lock = locked("fresh")
    assert facts(capsys, "fresh")["state"] == "running"
    lock.release()


def test_a_run_that_a_callback_has_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(
        tmp_path / "run", callbacks=[StopsAfter(5)], **{**SAVING, "eval_strategy": "no", "eval_steps": None}
    ).train()
    said = told(capsys, str(tmp_path / "run"))
    assert "finished at step 5" in said and "5 of 12" in said and "evaluation" not in said
    assert "has not been saved at the end" in said


def test_a_resumed_run_goes_on(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What has ended once, and been taken up again to go further, is where it is now."""
    schedule = [entry("stack_layers", 2, 3), entry("set_lr", 1e-3, 4), entry("widen_mlp", 2, 50)]
    again = trainer(Path("runs/grown"), schedule, callbacks=[StopsAfter(14)], **{**SAVING, "max_steps": 20})
    again.train(resume_from_checkpoint=True)
    capsys.readouterr()
    found = facts(capsys, "runs/grown")
    assert (found["state"], found["step"], found["end"], found["operations"]) == ("finished", 14, 20, 2)


def test_damage_is_named_and_the_rest_is_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs / "grown"
    journal, history = folder / "journal.jsonl", folder / "stats" / "history.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([lines[0], "no event\n", *lines[1:]]))
    logged = history.read_text().splitlines(keepends=True)
    history.write_text("".join([*logged[:3], "{ damaged\n", *logged[3:]]))
    (folder / "stats" / "progress.json").write_text("[1, ")
    found = facts(capsys, "runs/grown")
    assert [fault.split(" ")[0].rstrip(":") for fault in found["faults"]] == [
        "journal.jsonl", "stats/history.jsonl", "stats/progress.json"
    ]  # fmt: skip
    assert found["state"] == "finished" and found["model"]["layers"] == 4 and found["operations"] == 2
    assert told(capsys, "runs/grown").count("damaged  ") == 3
    journal.unlink()
    found = facts(capsys, "runs/grown", code=1)
    assert "the copy in checkpoint-12" in found["faults"][0] and found["operations"] == 2


def test_damaged_checkpoints(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of another size is seen at once, other content by hashing only."""
    folder = runs / "grown"
    assert "every file hashed" in told(capsys, "runs/grown", "--verify")
    weights = folder / "checkpoint-8" / "model.safetensors"
    raw = weights.read_bytes()
    weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert all(saved["fault"] is None for saved in facts(capsys, "runs/grown")["saved"])
    found = facts(capsys, "runs/grown", "--verify", code=1)
    assert [saved["fault"] is None for saved in found["saved"]] == [True, False, True]
    assert "checkpoint-8 is damaged; a resume passes over it." in found["advice"]
    (folder / "checkpoint-12" / "optimizer.pt").write_bytes(b"")
    found = facts(capsys, "runs/grown")
    assert "optimizer.pt: holds 0 bytes" in found["saved"][0]["fault"]
    assert "1 of 3 damaged" in told(capsys, "runs/grown")


def test_a_run_of_before_it_said_where_it_stands(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(runs / "grown" / "stats")
    found = facts(capsys, "runs/grown")
    assert (found["state"], found["step"], found["end"]) == ("finished", 12, 12)
    assert found["next"]["operation"] == "widen_mlp" and found["next"]["progress"] == "max_wait_iters 50"
    assert found["model"]["layers"] == 4 and found["evaluation"] is not None


def test_numbers_that_are_not_finite(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = runs / "grown" / "stats" / "history.jsonl"
    with history.open("a") as file:
        file.write('{"step": 12, "eval_loss": "nan"}\n{"step": 1e999}\n{"step": "nan", "loss": 3}\n')
    found = facts(capsys, "runs/grown")
    assert found["evaluation"]["loss"] == "nan" and math.isfinite(found["best"]["loss"])
    assert "evaluation NaN at step 12" in told(capsys, "runs/grown")


def test_on_a_terminal(runs: Path) -> None:
    for width in (60, 100):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(standing_view(standing(runs / "grown")))
        shown = console.export_text().splitlines()
        assert shown[0].startswith("runs/grown  finished at step 12") and "━" in shown[1]
        assert all(len(line) <= width for line in shown)


def test_what_is_no_run_is_refused_in_words(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    Path("file").touch()
    for argv, message in (
        (["runs/grwon"], "did you mean 'grown'?"),
        (["runs"], "runs are in it: failed, grown"),
        (["empty"], "is not the folder of a run"),
        (["file"], "is a file"),
        (["runs/grown/checkpoint-8"], "is a checkpoint; give its run"),
    ):
        assert morph.main(["status", *argv]) == 2
        assert message in capsys.readouterr().err
    for argv in ([], ["runs/grown", "--jsno"]):
        with pytest.raises(SystemExit) as stopped:
            morph.main(["status", *argv])
        assert stopped.value.code == 2


@pytest.mark.parametrize("argv", [["--help"], ["runs/grown"], ["runs/grown", "--json"]])
@pytest.mark.parametrize("command", ["status", "journal"])
def test_nobody_waits_for_torch(runs: Path, command: str, argv: list[str]) -> None:
    program = (
        "import sys\nfrom morphing_trainer.cli import morph\n"
        f"try: morph.main({[command, *argv]!r})\nexcept SystemExit: pass\n"
        "sys.exit(sorted({'torch', 'transformers', 'matplotlib'} & {*sys.modules}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
