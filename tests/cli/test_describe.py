"""`morph describe`: what it says of runs, checkpoints, folders and configs, and that it adds up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from morphing_trainer import LoraArguments, add_adapters
from morphing_trainer.cli import describe
from morphing_trainer.cli.describe import main
from morphing_trainer.cli.morph import main as morph
from morphing_trainer.errors import ConfigError, ModelError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.lora import save_model
from morphing_trainer.optimizers import decayed
from morphing_trainer.reporting.anatomy import anatomy, anatomy_lines, grouped, parts_of
from tests.support import tiny_model, trainer
from tests.trainer.common import entry


def described(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main([*argv, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has grown, adapted its attention and frozen a block."""
    folder = tmp_path_factory.mktemp("runs") / "grown"
    schedule = [entry("stack_layers", 2, 2), entry("set_attn_lora_rank", 2, 1), entry("freeze_layer", "mlp.1", 1)]
    run = trainer(folder, schedule, max_steps=6, save_strategy="steps", save_steps=1, save_total_limit=9)
    run.train()
    run.save_whole(folder / "model")
    return folder


def test_every_parameter_is_in_one_component() -> None:
    for tied in (True, False):
        model = tiny_model(tie_word_embeddings=tied)
        spec = ModelSpec.of(model)
        parts = parts_of(spec, decayed(spec))
        assert sum(part.parameters for part in parts) == spec.parameters == sum(p.numel() for p in model.parameters())
        assert sum(part.trained for part in parts) == spec.trainable
        assert [part.name for part in parts][:3] == ["wte", "wpe", "ln_1.0"]
        assert parts[-1].name == "lm_head"
        assert (parts[-1].note, parts[-1].parameters) == (("is wte", 0) if tied else ("", 32 * 16))
        by_name = {part.name: part for part in parts}
        assert by_name["wte"].decayed == by_name["ln_f"].decayed == 0
        assert by_name["attn.0"].decayed == 16 * 48 + 16 * 16
        assert by_name["attn.0"].parameters == by_name["attn.0"].decayed + 48 + 16


def test_layers_that_are_alike_are_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model(n_layer=4)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("transformer.h.1.attn"))
    spec = ModelSpec.of(model)
    rows = {part.name: part for part in grouped(parts_of(spec, decayed(spec)))}
    assert [*rows] == [
        "wte",
        "wpe",
        "ln_1.0-3",
        "attn.0",
        "attn.1",
        "attn.2-3",
        "ln_2.0-3",
        "mlp.0-3",
        "ln_f",
        "lm_head",
    ]
    assert rows["attn.1"].trained == rows["attn.1"].decayed == 0
    assert rows["attn.2-3"].parameters == 2 * rows["attn.0"].parameters
    lines = anatomy_lines(spec, decayed(spec))
    assert lines[0].startswith("GPT2LMHeadModel: 4 blocks, hidden 16, 2 heads, mlp 64, 16 positions, vocabulary 32")
    assert any(line.split() == ["attn.1", "1,088", "-", "-"] for line in lines)
    assert lines[-1].split()[:3] == ["all", f"{spec.parameters:,}", f"{spec.trainable:,}"]
    share = f"{spec.trainable / spec.parameters:.1%}"
    assert lines[1] == f"{spec.parameters:,} parameters, {spec.trainable:,} of them trained ({share})"


def test_a_run_is_its_newest_checkpoint(grown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = described(capsys, str(grown))
    assert found == described(capsys, str(grown / "checkpoint-6"))
    assert (found["step"], found["layers"], found["optimizer"], found["weight decay"]) == ("6", 4, "adamw", "0.01")
    parts = {part["name"]: part for part in found["components"]}
    assert parts["attn.3"]["adapters"] == "c_attn and c_proj: rank 2, alpha 8"
    assert parts["attn.3"]["decayed"] == 2 * (16 + 48) + 2 * (16 + 16)
    assert parts["mlp.1"]["trained"] == parts["mlp.1"]["decayed"] == 0
    assert parts["mlp.0"]["trained"] == parts["mlp.0"]["parameters"] == 2 * 16 * 64 + 64 + 16
    early = described(capsys, str(grown / "checkpoint-2"))
    assert (early["layers"], early["lora_modules"]) == (2, 0)


def test_a_folder_with_a_model(grown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = described(capsys, str(grown / "model"))
    assert (found["layers"], found["lora_modules"], found["trainable"]) == (4, 0, found["parameters"])
    model = add_adapters(tiny_model(), LoraArguments(attn_lora_rank_divisor=4))
    save_model(model, tmp_path / "adapted", merge=False)
    spec = ModelSpec.of(model)
    (tmp_path / "adapted" / "model.safetensors").unlink()  # no weights are read
    assert described(capsys, str(tmp_path / "adapted")) == {
        "source": str(tmp_path / "adapted"), **anatomy(spec, decayed(spec))
    }  # fmt: skip


def test_the_model_that_a_config_begins_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("n_layer: 3\nn_embd: 32\nn_head: 2\nblock_size: 16\nvocab_size: 64\nfp16: true\noptimizer: sgd\n")
    options = ["--default_freeze", "--train_only", "attn.1", "ln_f", "--vocab_lora_rank_divisor", "8"]
    found = described(capsys, "--config", str(file), "--n_layer", "2", *options)
    assert (found["layers"], found["vocabulary"], found["positions"], found["heads"]) == (2, 64, 16, 2)
    assert (found["optimizer"], found["weight decay"]) == ("sgd", "0")
    trained = {part["name"]: part["trained"] for part in found["components"] if part["trained"]}
    assert trained == {"wte": 4 * (64 + 32), "attn.1": 32 * 96 + 96 + 32 * 32 + 32, "ln_f": 64}


def test_on_a_terminal_it_is_a_table(
    grown: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(grown)]) == 0
    plain = capsys.readouterr().out
    monkeypatch.setattr(describe, "is_terminal", lambda: True)
    assert main([str(grown)]) == 0
    table = capsys.readouterr().out
    assert "───" in table
    assert "───" not in plain
    for part in ("attn.0-3", "c_attn and c_proj: rank 2, alpha 8", "is wte", "weight decay: 0.01"):
        assert part in table
        assert part in plain


def test_bad_input(grown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, message in (
        ([], "give a model, or --config"),
        ([str(tmp_path)], "has no config.json"),
        (["--config", str(tmp_path / "nowhere.yaml")], "nowhere.yaml"),
        (["--config", str(tmp_path / "nowhere.yaml"), "--n_layerss", "2"], "no such option"),
        ([str(grown / "model"), "--revision", "main"], "has no meaning for the local folder"),
    ):
        assert morph(["describe", *argv]) == 2, argv
        assert message in capsys.readouterr().err
    broken = tmp_path / "checkpoint-3"
    broken.mkdir()
    (broken / "morph_state.json").write_text("{}")
    assert morph(["describe", str(broken)]) == 2
    assert "morph_state.json: is not one that this library wrote" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        main([])
    with pytest.raises(ModelError):
        main([str(tmp_path / "model")])
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "--config FILE" in capsys.readouterr().out
