"""`morph validate`: every problem of every file, with its line, by what reads the file in a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from morphing_trainer.cli import morph
from morphing_trainer.cli.checking import checked, kind_of
from morphing_trainer.documents import load_document
from tests.reliability.mutations import CONFIGS, KINDS, sources

ROOT = Path(__file__).parents[2]
BAD = "- name: stack_layer\n  value: 2\n- name: change_lr\n  value: -1\n  max_wait_itrs: 3\n  max_wait_iters: 1\n"
GOOD = "- {name: change_lr, value: 2, max_wait_iters: 3}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(**files: str) -> None:
    for name, text in files.items():
        Path(f"{name}.yaml").write_text(text)


def told(capsys: pytest.CaptureFixture[str], *argv: str, code: int) -> tuple[list[str], list[str]]:
    assert morph.main(["validate", *argv]) == code
    out, err = capsys.readouterr()
    return out.splitlines(), err.splitlines()


def test_our_files_are_good_and_taken_for_what_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    for kind in KINDS:
        files = [str(path.relative_to(CONFIGS.parent)) for path in sources(kind)]
        out, err = told(capsys, *files, code=0)
        assert not err
        assert [line.partition(": ok (")[0] for line in out] == files
        assert all(f": ok ({kind}" in line for line in out)
    assert checked("configs/schedules/demo.yaml").facts == "7 operations"
    assert checked("configs/schedules/relora.yaml").facts == "3 operations, the last 2 again and again"
    assert checked("configs/three_stages.yaml").facts == (
        "plan configs/plans/three_stages.yaml with 3 stages, 5 operations"
    )


def test_every_problem_of_every_file(capsys: pytest.CaptureFixture[str]) -> None:
    write(
        bad=BAD,
        good=GOOD,
        plan="a: {dataset: demo}\nb:\n  dataset: demo\n  steps: 3\n  schedule:\n"
        "    - {name: change_lr, value: 0, max_wait_iters: 3}\n",
        run="learning_rat: 0.1\nn_layer: two\n",
        broken="a: [",
        twice="- {name: change_lr, value: 2, value: 3, max_wait_iters: -1}\n",
    )
    out, err = told(capsys, "bad.yaml", "good.yaml", "plan.yaml", "run.yaml", "broken.yaml", "twice.yaml", code=2)
    assert out == ["good.yaml: ok (schedule, 1 operation)"]
    assert [line.partition(": ")[0] for line in err] == [
        "bad.yaml:1", "bad.yaml:5", "bad.yaml:4", "plan.yaml:1", "plan.yaml:6", "run.yaml:1", "run.yaml:2",
        "broken.yaml:1", "twice.yaml:1", "twice.yaml:1",
    ]  # fmt: skip
    assert "did you mean 'stack_layers'?" in err[0] and "did you mean 'max_wait_iters'?" in err[1]
    assert "has no length" in err[3] and "must be a positive, finite number" in err[4], "stages, and their schedules"


def test_what_cannot_be_read_is_a_problem_like_others(capsys: pytest.CaptureFixture[str]) -> None:
    write(good=GOOD, empty="", binary="\x00")
    Path("folder.yaml").mkdir()
    Path("text.txt").write_text("x")
    names = ["nowhere.yaml", "folder.yaml", "empty.yaml", "binary.yaml", "text.txt", "x" * 300 + ".yaml", "good.yaml"]
    for kind in ([], ["--as", "schedule"], ["--as", "plan"], ["--as", "config"]):
        out, err = told(capsys, *kind, *names, code=2)
        assert len(err) == 6 + (len(out) == 0), err
        assert all(line.startswith(name) for line, name in zip(err, names, strict=False))
    assert told(capsys, "--as", "plan", "default", code=2)[1] == ["default: there is no such file; check the path"]


def test_what_a_config_names_is_checked_too(capsys: pytest.CaptureFixture[str]) -> None:
    write(
        bad=BAD,
        good=GOOD,
        run="bf16: true\nscaling_schedule_file: bad.yaml\n",
        fine="report_to: wandb\nscaling_schedule_file: good.yaml\n",
        lost="\n\nplan: nowhere.yaml\n",
        both="plan: demo\nscaling_schedule_file: good.yaml\n",
    )
    out, err = told(capsys, "run.yaml", "fine.yaml", "lost.yaml", "both.yaml", code=2)
    assert out == ["fine.yaml: ok (config, schedule good.yaml with 1 operation)"]
    assert [line.partition(": bad.yaml")[0] for line in err[:3]] == ["run.yaml:2: scaling_schedule_file"] * 3
    assert err[3].startswith("lost.yaml:3: plan: ")
    assert len(err) == 5 and err[4].startswith("both.yaml: ") and "Keep one" in err[4]
    assert not Path("runs").exists(), "nothing is begun"


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    write(bad=BAD, good=GOOD, broken="a: [")
    out, err = told(capsys, "bad.yaml", "good.yaml", "broken.yaml", "--json", code=2)
    found: list[dict[str, Any]] = json.loads("\n".join(out))
    assert not err
    assert [(item["file"], item["kind"], item["ok"]) for item in found] == [
        ("bad.yaml", "schedule", False), ("good.yaml", "schedule", True), ("broken.yaml", None, False)
    ]  # fmt: skip
    assert [problem["line"] for problem in found[0]["problems"]] == [1, 5, 4]
    assert found[0]["problems"][0]["where"] == "bad.yaml:1: entry 1, name"
    assert found[1]["facts"] == "1 operation" and not found[1]["problems"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("- 3", "schedule"), ("null", "schedule"), ("text", "schedule"), ("operations: []", "schedule"),
        ("operation:\n- {name: change_lr}", "schedule"), ("{name: change_lr, value: 2}", "schedule"),
        ("a: {dataset: demo}", "plan"), ("a: {}", "plan"), ("a: {steps: 3}\nb: 4", "plan"), ("a: 3", "config"),
        ("lr_scheduler_kwargs: {num_cycles: 2}\nn_layer: 2", "config"), ("{}", "config"),
    ],
)  # fmt: skip
def test_what_a_file_is_taken_for(text: str, kind: str) -> None:
    write(file=text)
    assert kind_of(load_document("file.yaml").data) == kind


def test_as_another_kind(capsys: pytest.CaptureFixture[str]) -> None:
    write(good=GOOD)
    assert "a plan is a mapping" in told(capsys, "--as", "plan", "good.yaml", code=2)[1][0]
    assert "expected `name: value` pairs" in told(capsys, "--as", "config", "good.yaml", code=2)[1][0]
    with pytest.raises(SystemExit) as error:
        morph.main(["validate", "--as", "shedule", "good.yaml"])
    assert error.value.code == 2
    with pytest.raises(SystemExit) as error:
        morph.main(["validate"])
    assert error.value.code == 2


def test_schedules_and_plans_are_checked_without_torch() -> None:
    """Editors and hooks call it at every save."""
    program = (
        "import sys\nfrom morphing_trainer.cli import morph\n"
        "code = morph.main(['validate', 'configs/schedules/relora.yaml', 'morphing_trainer/plans/demo.yaml'])\n"
        "sys.exit(sorted({'torch', 'transformers', 'peft', 'datasets'} & {*sys.modules}) or code)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
