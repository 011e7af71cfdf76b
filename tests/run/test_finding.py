"""Which model is meant: a run, a checkpoint, a folder, or the Hub."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from morphing_trainer.errors import CheckpointError, ModelError
from morphing_trainer.run.finding import find_model
from tests.support import tiny_model, trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps, saved at 2 and 4, without a model of its own."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    trainer(folder, max_steps=4, save_strategy="steps", save_steps=2, eval_strategy="no", eval_steps=None).train()
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "runs" / "first"))


def damage(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")


def test_a_run_is_its_newest_checkpoint(run: Path) -> None:
    assert find_model(str(run)) == str(run / "checkpoint-4")


def test_a_run_that_is_over_is_its_model(run: Path) -> None:
    tiny_model().save_pretrained(run / "model")
    assert find_model(str(run)) == str(run / "model")


def test_a_damaged_checkpoint_is_passed_over(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    damage(run / "checkpoint-4")
    with caplog.at_level(logging.WARNING):
        assert find_model(str(run)) == str(run / "checkpoint-2")
    assert "checkpoint-4 is damaged" in caplog.text
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        find_model(str(run / "checkpoint-4"))
    damage(run / "checkpoint-2")
    with pytest.raises(CheckpointError, match="all checkpoints of this run are damaged"):
        find_model(str(run))


def test_a_checkpoint_and_a_folder_are_themselves(run: Path, tmp_path: Path) -> None:
    assert find_model(str(run / "checkpoint-2")) == str(run / "checkpoint-2")
    tiny_model().save_pretrained(tmp_path / "plain")
    assert find_model(str(tmp_path / "plain")) == str(tmp_path / "plain")


def test_a_run_that_has_saved_nothing(run: Path) -> None:
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    with pytest.raises(CheckpointError, match="saved no checkpoint and no model yet"):
        find_model(str(run))


def test_names_that_are_no_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"no such run.*did you mean '.*first'"):
        find_model(str(run.with_name("frist")))
    monkeypatch.chdir(run.parent.parent)
    with pytest.raises(ModelError, match="did you mean 'runs/first'"):
        find_model("runs/fist")
    with pytest.raises(ModelError, match=r"no such run.*check the path"):
        find_model("./nowhere/at/all")
    with pytest.raises(ModelError, match="holds no run, checkpoint or model"):
        find_model("runs")
    assert find_model("openai-community/gpt2") == "openai-community/gpt2"
    assert find_model("gpt2") == "gpt2"
