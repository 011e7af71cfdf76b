"""Where memory is short: an emergency checkpoint, once, whole, and there when it is needed."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from morphing_trainer import MorphingTrainer
from morphing_trainer.checkpoint.store import checkpoints
from morphing_trainer.errors import NotFiniteError
from morphing_trainer.layers import saving
from morphing_trainer.memory.monitor import Monitor, Usage
from morphing_trainer.memory.system import Amount
from morphing_trainer.run.journal import read_journal
from tests.support import Tokens, arguments, same, tiny_model, weights
from tests.trainer.common import DROPOUT
from tests.trainer.program import Job, complete, fail


class Pressed(MorphingTrainer):
    """Reads from a list how much of the machine's memory is in use, in percent, at the end of every step."""

    readings: Sequence[float]

    def _watch_memory(self) -> None:
        super()._watch_memory()
        self._monitor = Monitor(self.args.device, self._read, lambda: float(self._step))  # a step takes a second

    @property
    def _step(self) -> int:
        assert self.session is not None
        return self.session.state.step

    def _read(self, device: torch.device) -> Usage:
        percent = self.readings[self._step - 1] if 0 < self._step <= len(self.readings) else 10
        return Usage(1, Amount(int(100 * percent), 10_000), 0)


def make(folder: Path, *readings: float, **changes: Any) -> Pressed:
    """Reading k is that of the end of step k."""
    options = {"max_steps": 9, "eval_strategy": "no", "eval_steps": None, "log_memory": False, **changes}
    run = Pressed(tiny_model(**DROPOUT), arguments(folder, **options), train_dataset=Tokens(61))
    run.readings = readings
    return run


def emergencies(run: MorphingTrainer) -> list[dict[str, Any]]:
    return [event for event in read_journal(run.run_folder / "journal.jsonl") if event["event"] == "emergency"]


def saved(run: MorphingTrainer) -> list[str]:
    return [path.name for path in checkpoints(run.run_folder)]


def test_once_for_every_rise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = make(tmp_path / "run", 50, 94, 96, 97, 99, 94, 96, 92, 95, save_total_limit=9)
    with caplog.at_level(logging.WARNING):
        run.train()
    assert saved(run) == ["checkpoint-9", "checkpoint-3"]
    assert [(event["step"], event["checkpoint"]) for event in emergencies(run)] == [
        (3, "checkpoint-3"),
        (9, "checkpoint-9"),
    ]
    assert emergencies(run)[0]["why"] == "96 % of memory in use, above memory_pressure_percent 95"
    said = [record.getMessage() for record in caplog.records if "memory is short" in record.getMessage()]
    assert len(said) == 2
    assert said[0].startswith("step 3: memory is short (96 % of memory in use") and "checkpoint-3 is saved." in said[0]


def test_it_changes_nothing_and_can_be_resumed(tmp_path: Path) -> None:
    plain = make(tmp_path / "plain")
    plain.train()
    pressed = make(tmp_path / "pressed", 10, 10, 10, 99)
    pressed.train()
    assert saved(plain) == []
    assert same(weights(plain), weights(pressed))
    resumed = make(tmp_path / "pressed")
    resumed.train(True)
    assert same(weights(plain), weights(resumed))


@pytest.mark.parametrize("threshold", [0, None])
def test_it_can_be_off(tmp_path: Path, threshold: float | None) -> None:
    run = make(tmp_path, 99, 99, memory_pressure_percent=threshold)
    run.train()
    assert saved(run) == []


def test_another_threshold(tmp_path: Path) -> None:
    run = make(tmp_path, 10, 70, memory_pressure_percent=60)
    run.train()
    assert saved(run) == ["checkpoint-2"]


def test_a_step_that_is_saved_anyway_is_saved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[str] = []
    publish = saving.publish

    def noted(staging: Path, final: Path) -> None:
        published.append(final.name)
        publish(staging, final)

    monkeypatch.setattr(saving, "publish", noted)
    run = make(tmp_path, 10, 10, 10, 99, save_strategy="steps", save_steps=4)
    run.train()
    assert published == ["checkpoint-4", "checkpoint-8", "checkpoint-9"]
    assert [event["step"] for event in emergencies(run)] == [4]


def test_resume_falls_back_to_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The regular ones of steps 8 and 9 are broken; without the emergency's there would be the one of step 4."""
    saving = {"save_strategy": "steps", "save_steps": 4}
    whole = make(tmp_path / "whole", **saving)
    whole.train()
    run = make(tmp_path / "run", 10, 10, 10, 10, 10, 99, **saving)
    run.train()
    assert saved(run) == ["checkpoint-9", "checkpoint-8", "checkpoint-6"]
    for name in ("checkpoint-9", "checkpoint-8"):
        broken = run.run_folder / name / "optimizer.pt"
        broken.write_bytes(broken.read_bytes()[:-1])
    resumed = make(tmp_path / "run", **saving)
    with caplog.at_level(logging.WARNING):
        resumed.train(True)
    assert "checkpoint checkpoint-8 is damaged" in caplog.text
    (event,) = [event for event in read_journal(run.run_folder / "journal.jsonl") if event["event"] == "resume"]
    assert event["checkpoint"] == "checkpoint-6"
    assert same(weights(resumed), weights(whole))


def test_it_stays_until_newer_ones_are_there(tmp_path: Path) -> None:
    """Two are kept: it goes when two newer ones have been saved, and not before."""
    kept = {}
    for steps in (6, 7, 8):
        saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "max_steps": steps}
        run = make(tmp_path / str(steps), 10, 10, 10, 10, 99, **saving)
        run.train()
        kept[steps] = saved(run)
    assert kept == {
        6: ["checkpoint-6", "checkpoint-5"],
        7: ["checkpoint-7", "checkpoint-6"],
        8: ["checkpoint-8", "checkpoint-6"],
    }


def test_a_full_disk_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = make(tmp_path, 10, 10, 99)
    monkeypatch.setattr(saving, "staging_folder", fail(OSError("no space left")))
    with caplog.at_level(logging.WARNING):
        run.train()
    assert run.state.global_step == 9
    assert emergencies(run) == []
    assert re.search(r"an emergency checkpoint could not be saved: .*\(no space left\)", caplog.text)


class Dies(TrainerCallback):
    """The model dies at the end of a step, when its loss has been seen."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 3:
            with torch.no_grad():
                model.transformer.wpe.weight[0, 0] = float("nan")


def test_a_dead_model_is_not_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = make(tmp_path, 10, 10, 99)
    run.add_callback(Dies())
    with caplog.at_level(logging.WARNING), pytest.raises(NotFiniteError, match="step 4: the loss"):
        run.train()
    assert saved(run) == []
    assert emergencies(run) == []
    assert "the model is dead and was not saved" in caplog.text


def test_if_one_rank_is_short_all_save(tmp_path: Path) -> None:
    job = complete(Job(tmp_path / "run", [], pressed=(1, 4), options={"max_steps": 6}), 2)
    assert [path.name for path in checkpoints(job.folder)] == ["checkpoint-4"]
    assert (job.folder / "checkpoint-4" / "rng_state_1.pth").is_file()
    events = [event["step"] for event in read_journal(job.folder / "journal.jsonl") if event["event"] == "emergency"]
    assert events == [4]
