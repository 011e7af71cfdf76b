"""`check_grads`: parameters that are trained in name only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from morphing_trainer import MorphingTrainer
from morphing_trainer.run.journal import read_journal
from tests.support import tiny_model, trainer
from tests.trainer.common import entry

WPE = "transformer.wpe.weight"


def cut_off(model: Any) -> Any:
    """The model with position embeddings that no gradient reaches."""
    model.transformer.wpe.register_forward_hook(lambda module, inputs, output: output.detach())
    return model


def found(folder: Path) -> list[tuple[int, list[str]]]:
    lines = read_journal(folder / "journal.jsonl")
    return [(line["step"], line["names"]) for line in lines if line["event"] == "without_gradient"]


def test_the_first_step_and_the_first_after_a_morph(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The hook is in the model that the run began with; the grown one has it no more."""
    schedule = [entry("change_lr", 0.5, 2), entry("stack_layers", 2, 2)]
    run = trainer(tmp_path, schedule, check_grads=True, max_steps=6)
    cut_off(run.model)
    run.train()
    assert found(tmp_path) == [(1, [WPE])], "once: neither every step, nor after an operation on the rate"
    assert [r.getMessage() for r in caplog.records if "no gradient reaches" in r.getMessage()] == [
        f"step 1: no gradient reaches {WPE}; freeze what is not to be trained"
    ]


class CutsOff(TrainerCallback):
    """Takes the gradient away when a model has grown."""

    run: MorphingTrainer

    def on_operation(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        cut_off(self.run.model)


def test_after_a_morph_too(tmp_path: Path) -> None:
    cuts = CutsOff()
    cuts.run = trainer(tmp_path, [entry("stack_layers", 2, 3)], check_grads=True, max_steps=6, callbacks=[cuts])
    cuts.run.train()
    assert found(tmp_path) == [(4, [WPE])]


def test_nothing_is_said_where_all_is_well_or_nobody_asked(tmp_path: Path) -> None:
    run = trainer(tmp_path / "well", [entry("freeze_layer", "wpe", 2)], check_grads=True, max_steps=4)
    run.train()
    assert found(tmp_path / "well") == []
    silent = trainer(tmp_path / "silent", [], tiny_model(), max_steps=2)
    cut_off(silent.model)
    silent.train()
    assert found(tmp_path / "silent") == []
