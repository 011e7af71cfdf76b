"""`morph plan`: what it tells is what the run will be, and what is wrong is told before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from morphing_trainer.cli import morph
from morphing_trainer.flops import flops_per_token
from morphing_trainer.lineage import ModelSpec
from tests.support import tiny_config, tiny_model

FACTS = {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 100, "block_size": 16, "max_steps": 400}
FACTS |= {"eval_strategy": "steps", "eval_steps": 50}
SHAPE = [part for name, value in FACTS.items() for part in (f"--{name}", str(value))]
STACK = "- {name: stack_layers, value: 2, init: identity, trigger_loss: 4.0, max_wait_iters: 200}\n"
RATES = "- {name: reset_lr_schedule, max_wait_iters: 0}\n"


@pytest.fixture
def schedule(tmp_path: Path) -> str:
    path = tmp_path / "schedule.yaml"
    path.write_text(STACK + RATES)
    return str(path)


def planned(capsys: pytest.CaptureFixture[str], *argv: str) -> Mapping[str, Any]:
    assert morph.main(["plan", *argv, "--json"]) == 0
    found: Mapping[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert morph.main(["plan", *argv]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err


def test_of_a_new_model(schedule: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, schedule, *SHAPE)
    specs = [
        ModelSpec(tiny_config(n_layer=layers, n_embd=32, vocab_size=100, n_positions=16, n_inner=None))
        for layers in (2, 4, 4)
    ]
    phases = found["phases"]
    assert [phase["parameters"] for phase in phases] == [spec.parameters for spec in specs]
    assert [phase["flops_per_token"] for phase in phases] == [flops_per_token(spec, 16) for spec in specs]
    assert [(phase["soonest"], phase["latest"]) for phase in phases] == [(0, 0), (50, 200), (51, 201)]
    assert [phase["memory"]["weights"] for phase in phases] == [4 * spec.parameters for spec in specs]
    assert found["cost"]["latest"]["flops"] < found["cost"]["soonest"]["flops"]
    assert found["cost"]["latest"]["tokens"] == 400 * 8 * 16


def test_as_text(schedule: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert morph.main(["plan", schedule, *SHAPE]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["batch at the start: 8 x 16 = 128 tokens a step", "length of the run: 400 steps"]
    assert lines[4].split()[:3] == ["#", "operation", "step"]
    assert lines[6].startswith("1  stack_layers 2     50 to 200  4 x 32, mlp 128  ")
    assert any(line.startswith("Cost, operations as late as they can: ") for line in lines)


def test_of_a_model_on_disk(schedule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model(n_layer=3)
    model.save_pretrained(tmp_path / "model")
    found = planned(capsys, schedule, "--model", str(tmp_path / "model"), "--block_size", "8")
    assert [phase["layers"] for phase in found["phases"]] == [3, 6, 6]
    assert found["steps"] is None
    assert found["cost"] == {"soonest": None, "latest": None}


def test_the_demo_and_a_plan_in_stages(capsys: pytest.CaptureFixture[str]) -> None:
    demo = planned(capsys, "--config", "configs/demo.yaml")
    assert [phase["operation"] for phase in demo["phases"]][:3] == [None, "change_lr", "stack_layers"]
    staged = planned(capsys, "--config", "configs/three_stages.yaml")
    assert len(staged["phases"]) > 3


def test_what_takes_memory(schedule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def needs(*more: str) -> int:
        return int(planned(capsys, schedule, *SHAPE, *more)["phases"][0]["memory"]["total"])

    plain = needs()
    assert needs("--bf16") == needs("--fp16") < plain
    config = tmp_path / "half.yaml"
    config.write_text("bf16: true\n")
    assert needs("--config", str(config)) == needs("--bf16")
    assert needs("--config", str(config), "--no_bf16") == needs("--bf16", "false") == plain
    assert needs("--activation_checkpointing", "true") < plain
    assert needs("--optimizer", "sgd") < plain
    assert needs("--per_device_train_batch_size", "16") > plain


def test_what_is_wrong(schedule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = tmp_path / "wide.yaml"
    wide.write_text("- {name: widen_mlp, value: 2, max_wait_iters: 5}\n- {name: stack_layer, value: 2}\n")
    assert f"{wide}:2: entry 2, name: unknown operation 'stack_layer'" in refused(capsys, str(wide), *SHAPE)
    assert "give a schedule, and --model or --config" in refused(capsys)
    assert "--max_step: no such option" in refused(capsys, schedule, "--max_step", "5")
    assert "there is no such file" in refused(capsys, str(tmp_path / "none.yaml"), *SHAPE)
    assert "no/such/model" in refused(capsys, schedule, "--model", "no/such/model")
    tiny_model().save_pretrained(tmp_path / "model")
    told = refused(capsys, schedule, "--model", str(tmp_path / "model"), "--block_size", "512")
    assert "block_size: is 512, but the model takes at most" in told


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        morph.main(["plan", "--help"])
    assert stop.value.code == 0
    assert "morph plan configs/schedules/gstack.yaml --model gpt2" in capsys.readouterr().out
