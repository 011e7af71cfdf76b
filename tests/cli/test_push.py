"""`morph push` without a Hub: what would go, and what is refused before anything is asked. With one: tests/hub."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from morphing_trainer import LoraArguments, add_adapters
from morphing_trainer.cli import morph
from tests.support import tiny_model, trainer
from tests.trainer.common import entry

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8}
MODEL = {"README.md", "config.json", "generation_config.json", "journal.jsonl", "model.safetensors", "schedule.yaml"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("runs")
    grown = trainer(home / "grown", [entry("stack_layers", 2, 3)], **SAVING)
    grown.train()
    grown.save_whole(home / "grown/model")
    adapted = add_adapters(tiny_model(), LoraArguments(lora_r=2))
    trainer(home / "lora", [entry("widen_mlp", 2, 2)], adapted, **SAVING).train()  # type: ignore[arg-type]
    return home


def dry(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert morph.main(["push", *argv, "--dry_run", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_what_would_go(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = dry(capsys, str(made / "grown"))
    assert found["repo"] == "grown" and set(found["files"]) == MODEL
    assert found["files"]["model.safetensors"] == (made / "grown/model/model.safetensors").stat().st_size
    assert "stack_layers 2" in ModelCard(found["card"]).text and str(made) not in found["card"]
    assert morph.main(["push", str(made / "grown"), "--dry_run", "--repo_id", "me/other"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Would be pushed to me/other:" and any(line.split()[:1] == ["config.json"] for line in lines)
    assert '    model = AutoModelForCausalLM.from_pretrained("me/other")'.strip() in lines


def test_of_a_run_that_has_not_come_to_its_end(made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Its newest checkpoint that is whole; adapters are merged, as the run would have."""
    shutil.copytree(made / "lora", tmp_path / "lora")
    found = dry(capsys, str(tmp_path / "lora"))
    assert set(found["files"]) == MODEL and "after step 8" not in found["card"]
    (tmp_path / "lora/checkpoint-8/model.safetensors").write_bytes(b"damaged")
    found = dry(capsys, str(tmp_path / "lora"))
    assert "after step 4" in found["card"] and "widen_mlp 2" in found["card"]
    assert "after step 4" in dry(capsys, str(tmp_path / "lora/checkpoint-4"))["card"]
    assert not [path for path in (tmp_path / "lora").iterdir() if path.name.startswith(".morph-p")]


def test_a_model_that_is_older_than_the_last_checkpoint(
    made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The run has gone on since it was saved."""
    shutil.copytree(made / "grown", tmp_path / "grown")
    run = trainer(tmp_path / "grown", [entry("stack_layers", 2, 3)], **{**SAVING, "max_steps": 12})
    run.train(resume_from_checkpoint=True)
    capsys.readouterr()
    assert "12 steps" in dry(capsys, str(tmp_path / "grown"))["card"]
    assert "model.safetensors" in dry(capsys, str(tmp_path / "grown/model"))["files"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing", "nothing"),
        ("empty", "is not the folder of a run"),
        ("damaged", "has saved no model and no checkpoint that is whole"),
        ("lora/checkpoint-4", "checkpoint-4"),
    ],
)
def test_what_is_no_run(
    name: str,
    says: str,
    made: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(made / "lora", tmp_path / "lora")
    (tmp_path / "lora/checkpoint-4/model.safetensors").write_bytes(b"damaged")
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/journal.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    assert morph.main(["push", name, "--dry_run"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and says in said and len(said.splitlines()) == 1


def test_without_a_token_or_a_network(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is asked: these tests run offline."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_nothingNOTHINGnothing")
    assert morph.main(["push", str(made / "grown")]) == 2
    said = capsys.readouterr().err
    assert "the Hub cannot be reached (HF_HUB_OFFLINE is set)" in said and "hf_" not in said


def test_it_is_light(made: Path) -> None:
    """The help and a dry run need no torch."""
    told = "import sys; from morphing_trainer.cli import morph; code = morph.main(sys.argv[1:]); "
    told += "assert not {'torch', 'transformers'} & set(sys.modules); sys.exit(code)"
    done = subprocess.run(
        [sys.executable, "-c", told, "push", str(made / "grown"), "--dry_run"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        morph.main(["push", "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    for part in (
        "--repo_id NAME",
        "--dry_run",
        "HF_ENDPOINT",
        "hf auth login",
        "exit codes: 0",
        "morph push runs/demo",
    ):
        assert part in said
    assert max(map(len, said.splitlines())) <= 120


def test_a_damaged_checkpoint_does_not_stand_in_for_the_model(
    made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Not for an older one either: the model is newer than what is left."""
    run = tmp_path / "grown"
    shutil.copytree(made / "grown", run)
    (run / "checkpoint-8/model.safetensors").write_bytes(b"damaged")  # and newer than the model by that
    found = dry(capsys, str(run))
    assert "after step" not in found["card"]
    assert found["files"]["model.safetensors"] == (run / "model/model.safetensors").stat().st_size


def test_a_model_that_could_not_be_loaded_is_not_pushed(
    made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = tmp_path / "grown"
    shutil.copytree(made / "grown", run)
    with (run / "model/model.safetensors").open("ab") as file:
        file.write(b"x")
    assert morph.main(["push", str(run), "--dry_run"]) == 2
    assert "model.safetensors: cannot be read" in capsys.readouterr().err


def test_a_name_that_cannot_be(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert morph.main(["push", str(made / "grown"), "--dry_run", "--repo_id", "bad name/x y"]) == 2
    assert "--repo_id: 'bad name/x y' cannot be a repository's name" in capsys.readouterr().err
