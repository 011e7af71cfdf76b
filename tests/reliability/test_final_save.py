"""The model at the end of a run, on a disk that does not take it: a clear error, and what was there before stays."""

from __future__ import annotations

import json
import os
import resource
import traceback
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from morphing_trainer import LoraArguments, MorphingTrainer, add_adapters
from tests.reliability.nursery import Nursery
from tests.reliability.privileges import unprivileged
from tests.support import tiny_model, trainer

ADAPTERS = LoraArguments(2, 2)


def make(folder: Path, **changes: Any) -> MorphingTrainer:
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "disable_tqdm": True, **changes}
    model: Any = add_adapters(tiny_model(), ADAPTERS)
    return trainer(folder, None, model, **options)


def saved(folder: Path, what: str, merged: bool) -> None:
    """In the process: train, and save the model twice; the second time the disk does not take it."""
    made = make(folder, save_merged=merged)
    made.train()
    told: dict[str, Any] = {"error": None}
    if "again" in what:
        made.save_whole(folder / "model")
    if what.startswith("largest"):
        null = os.open(os.devnull, os.O_WRONLY)  # the limit is for what is printed, too
        os.dup2(null, 1)
        os.dup2(null, 2)
        limit = int(what.split()[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    with unprivileged():
        try:
            if what.startswith("locked"):
                folder.chmod(0o555)
            made.save_whole(folder / "model")
        except Exception as error:
            told = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    folder.chmod(0o755)
    soft = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, soft))
    folder.with_name("told.json").write_text(json.dumps(told))


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("what", ["largest 100", "largest 5000 again", "largest 20000", "locked", "locked again"])
def test_a_disk_that_does_not_take_it(nursery: Nursery, tmp_path: Path, what: str, merged: bool) -> None:
    folder = tmp_path / "run"
    code = nursery.start(saved, folder, what, merged, log=tmp_path / "log").code()
    assert code == 0, (tmp_path / "log").read_text()[-3000:]
    told = json.loads((tmp_path / "told.json").read_text())
    error = told["error"]
    assert error is not None
    assert error.startswith(f"StorageError: {folder / 'model'}: the trained model could not be saved ("), told["trace"]
    assert ("Permission denied" in error) == ("locked" in what)
    assert "checkpoint-2 is there; --resume_from_checkpoint true saves the model again" in error
    assert [path.name for path in folder.glob(".model*")] == [], "half a model takes up the room"
    assert (folder / "model").is_dir() == ("again" in what)
    made = make(folder, save_merged=merged)
    made.train(True)
    made.save_whole(folder / "model")
    if merged:
        found = AutoModelForCausalLM.from_pretrained(folder / "model")
        assert found.config.n_layer == 2


def test_other_errors_pass(tmp_path: Path) -> None:
    """What is no matter of the disk is told as it is."""
    made = make(tmp_path / "run")
    made.processing_class = Breaks()  # type: ignore[assignment]
    with pytest.raises(ZeroDivisionError):
        made.save_whole(tmp_path / "run" / "model")


class Breaks:
    def save_pretrained(self, folder: str) -> None:
        raise ZeroDivisionError
