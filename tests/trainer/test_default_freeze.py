"""Runs that begin with everything frozen but what is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from morphing_trainer import LoraArguments, MorphingTrainer, add_adapters
from morphing_trainer.errors import CheckpointError, ConfigError, ScheduleError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.run.freezing import frozen_but
from tests.support import same, tiny_model, trainer, weights
from tests.trainer.common import applied, entry, optimizer_state

OPTIONS: dict[str, Any] = {"default_freeze": True, "eval_strategy": "no", "max_steps": 6}


def moved(run: MorphingTrainer, before: Any) -> set[str]:
    start = dict(before.named_parameters())
    return {name for name, weight in weights(run).items() if not bool((weight == start[name]).all())}


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("attn.*", [".attn."]),
        (["mlp.1", "ln_f"], ["h.1.mlp.", "ln_f"]),
        (["attn.0-1", "wte"], [".attn.", "wte"]),
        ("lm_head", ["wte"]),  # tied
        ("*", [""]),
    ],
)
def test_only_what_is_named_is_trained(tmp_path: Path, named: Any, expected: list[str]) -> None:
    model = tiny_model()
    run = trainer(tmp_path, [], model, train_only=named, **OPTIONS)
    run.train()
    names = {name for name, _ in model.named_parameters() if any(part in name for part in expected)}
    assert moved(run, model) == names
    assert {line.split(": ")[0] for line in optimizer_state(run) if "transformer" in line} == names


def test_it_goes_through_morphs_and_resumes(tmp_path: Path) -> None:
    options = {**OPTIONS, "train_only": "attn.*", "save_strategy": "steps", "save_steps": 1, "save_total_limit": 9}
    schedule = [entry("stack_layers", 2, 2), entry("unfreeze_layer", "ln_f", 2)]
    whole = trainer(tmp_path / "whole", schedule, **options)
    whole.train()
    assert len(applied(whole)) == 2
    spec = ModelSpec.of(whole.model)
    assert spec.shapes.keys() - spec.frozen == {n for n in spec.shapes if ".attn." in n or "ln_f" in n}
    for step in (1, 3, 5):
        run = trainer(tmp_path / str(step), schedule, **options)
        run.train(str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert same(weights(run), weights(whole)), step
        assert ModelSpec.of(run.model).frozen == spec.frozen
    for change in ({"train_only": ["attn.*", "wpe"]}, {"train_only": None, "default_freeze": False}):
        other = trainer(tmp_path / "other", schedule, **{**options, **change})
        with pytest.raises(CheckpointError, match=r"weights .* \(was frozen, is trained\)"):
            other.train(str(tmp_path / "whole" / "checkpoint-3"))


def test_adapters_are_trained_and_their_weights_stay_frozen_when_they_go(tmp_path: Path) -> None:
    model = add_adapters(tiny_model(), LoraArguments(attn_lora_rank_divisor=4))
    run = trainer(tmp_path / "a", [], model, **OPTIONS)  # type: ignore[arg-type]
    run.train()
    assert moved(run, model) == {name for name, _ in model.named_parameters() if ".lora_" in name}
    gone = entry("set_attn_lora_rank", 0, 2)
    with pytest.raises(ScheduleError, match="nothing would be left to train"):
        trainer(tmp_path / "b", [gone], model, **OPTIONS)  # type: ignore[arg-type]
    kept = trainer(tmp_path / "c", [gone], model, train_only="attn.0", **OPTIONS)  # type: ignore[arg-type]
    kept.train()
    spec = ModelSpec.of(kept.model)
    assert spec.shapes.keys() - spec.untrained == {name for name in spec.shapes if ".h.0.attn." in name}


def test_what_was_frozen_before_is_named_or_stays(tmp_path: Path) -> None:
    model = tiny_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("h.0.attn" not in name)
    run = trainer(tmp_path, [], model, train_only=["attn.0", "attn.1"], **OPTIONS)
    assert {name for name, p in run.model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if ".attn." in name
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "default_freeze: nothing would be left to train; name components in train_only, or begin with adapters"),
        ({"train_only": "atn.*"}, r"train_only: 'atn.\*' names no component of this model"),
        ({"train_only": ["attn.7"]}, "train_only: 'attn.7' names no component .*; it has attn.0 to attn.1"),
        ({"train_only": "attn.*", "default_freeze": False}, "train_only: has no effect without default_freeze"),
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, [], **{**OPTIONS, **given})


def test_it_is_a_pure_function_of_the_description() -> None:
    spec = ModelSpec.of(tiny_model())
    new = frozen_but(spec, ["mlp.0"])
    assert new.shapes.keys() - new.frozen == {name for name in spec.shapes if ".h.0.mlp." in name}
    assert spec.frozen == frozenset()
