"""LoRA from the command line: arguments from files and options, their errors with their place, and whole runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from morphing_trainer.cli.arguments import parse
from morphing_trainer.cli.train import main
from morphing_trainer.errors import ConfigError
from morphing_trainer.lora_arguments import LoraArguments
from tests.cli.test_train import QUICK, TEXT, run

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def write(folder: Path, data: Any, name: str = "run.yaml") -> str:
    path = folder / name
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))
    return str(path)


def problems(argv: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(argv)
    return str(caught.value).splitlines()


# ---- Arguments -------------------------------------------------------------------------------------------------------


def test_a_value_reads_the_same_from_every_source(tmp_path: Path) -> None:
    lines = "lora_r: 4\nlora_alpha: 16\nlora_target_modules: [c_attn, mlp.c_fc]\nlora_dropout: 0.1\nuse_rslora: true\n"
    from_yaml = parse(["--config", write(tmp_path, lines + "lora_freeze_base: all\n")]).lora
    argv = "--lora_r 4 --lora_alpha 16 --lora_target_modules c_attn mlp.c_fc --lora_dropout .1 --use_rslora"
    from_line = parse([*argv.split(), "--lora_freeze_base=all"]).lora
    targets = ["c_attn", "mlp.c_fc"]
    assert from_yaml == from_line == LoraArguments(0, 0, 4, targets, 16, 0.1, True, "all")
    divisors = parse(["--attn_lora_rank_divisor", "4", "--vocab_lora_rank_divisor=8"]).lora
    assert divisors == LoraArguments(4, 8)
    assert parse([]).lora == LoraArguments()


@pytest.mark.parametrize("written", ["all-linear", "[all-linear]", "c_attn"])
def test_one_target(tmp_path: Path, written: str) -> None:
    """As text or as a list of one."""
    config = write(tmp_path, f"lora_r: 2\nlora_target_modules: {written}\n")
    name = written.strip("[]")
    assert parse(["--config", config]).lora.lora_target_modules in (name, [name])
    assert parse(["--lora_r", "2", "--lora_target_modules", name]).lora.lora_target_modules == [name]


def test_all_problems_of_a_file_with_their_lines(tmp_path: Path) -> None:
    config = write(
        tmp_path,
        "lora_freeze_base: target\n"
        "use_rslora: 1\n"
        "lora_rank: 4\n"
        "lora_target_modules: 5\n"
        "lora_alpha: 0\n"
        "lora_dropout: 1.0\n"
        "attn_lora_rank_divisor: -2\n"
        "vocab_lora_rank_divisor: 1.5\n",
    )
    assert sorted(problems(["--config", config])) == [
        f"{config}:1: lora_freeze_base: 'target' is not a valid value; did you mean 'targets'?",
        f"{config}:2: use_rslora: expected true or false, got the number 1",
        f"{config}:3: lora_rank: no such argument; did you mean 'lora_r'?",
        f"{config}:4: lora_target_modules: expected a list of texts or text, got the number 5; put it in quotes",
        f"{config}:5: lora_alpha: must be above 0, is 0.0",
        f"{config}:6: lora_dropout: must be at least 0 and below 1, is 1.0",
        f"{config}:7: attn_lora_rank_divisor: must be at least 0, is -2",
        f"{config}:8: vocab_lora_rank_divisor: expected a whole number, got the number 1.5",
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lora_r", "0"], "lora_r: must be at least 1, is 0"),
        (["--lora_r", "four"], "--lora_r: expected a whole number, got 'four'"),
        (["--lora_freeze_base", "x"], "--lora_freeze_base: 'x' is not a valid value; valid are all, targets"),
        (["--lora_target_modules"], "--lora_target_modules: a value is missing; expected a list of texts or text"),
        (["--lora_rank", "4"], "--lora_rank: no such option; did you mean '--lora_r'?"),
        (["--lora_alpha", "nan"], "lora_alpha: must be a finite number, is nan"),
    ],
)
def test_command_line_errors(argv: list[str], message: str) -> None:
    assert problems(argv) == [f"command line: {message}"]


def test_ranks_that_are_given_twice_or_not_at_all(tmp_path: Path) -> None:
    file = write(tmp_path, "seed: 1\nattn_lora_rank_divisor: 4\n")
    assert problems(["--config", file, "--lora_r", "8"]) == [
        f"command line: lora_r: stands beside attn_lora_rank_divisor ({file}:2); remove one of them"
    ]
    assert parse(["--config", file, "--lora_r", "8", "--attn_lora_rank_divisor", "0"]).lora == LoraArguments(lora_r=8)
    targets = write(tmp_path, "lora_target_modules: [c_attn]\nvocab_lora_rank_divisor: 4\n", "targets.yaml")
    assert problems(["--config", targets]) == [f"{targets}:1: lora_target_modules: have no rank; give lora_r"]


def test_help_has_a_group(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    group = text.partition("\nLoRA arguments:\n")[2].partition("\ntraining arguments:\n")[0]
    assert "  --lora_target_modules MODULES\n" in group
    assert "  --lora_freeze_base targets|all\n" in group
    assert "  --use_rslora [true|false]\n" in group
    assert "--learning_rate" not in group
    assert "--save_merged [true|false]" in text


# ---- Runs ------------------------------------------------------------------------------------------------------------


def test_arguments_that_do_not_fit_the_model(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for options, expected in (
        (["--lora_r", "99"], "error: lora_r: rank 99 is above 16, the smaller side of transformer.h.0.attn.c_attn"),
        (["--attn_lora_rank_divisor", "17"], "error: attn_lora_rank_divisor: 16 // 17 leaves no rank"),
        (
            ["--lora_r", "2", "--lora_target_modules", "c_atn"],
            "error: lora_target_modules: the model has no module 'c_atn'; did you mean 'c_attn'?",
        ),
        (["--lora_freeze_base", "all"], "error: lora_freeze_base: nothing would be left to train"),
    ):
        assert run(tmp_path, "--train_file", text, *options) == 2
        message = capsys.readouterr().err
        assert expected in message
        assert "Traceback" not in message
    assert not (tmp_path / "run").exists()


def test_from_start_to_another_run(tmp_path: Path, text: str) -> None:
    """Adapters by a file and by options, operations on them, a plain model; then another run from a checkpoint."""
    schedule = write(
        tmp_path,
        [
            {"name": "set_layer_lora_rank", "value": ["mlp.*", 3], "max_wait_iters": 1},
            {"name": "merge_lora_weights", "value": None, "max_wait_iters": 1},
        ],
        "schedule.yaml",
    )
    config = write(tmp_path, {"lora_r": 2, "lora_alpha": 4, "lora_dropout": 0.1, "scaling_schedule_file": schedule})
    saving = ["--save_strategy", "steps", "--save_steps", "2"]
    options = ["--config", config, "--train_file", text, "--lora_target_modules", "c_attn", "mlp.c_fc"]
    assert run(tmp_path, *options, *saving) == 0
    plain = tmp_path / "run" / "model"
    assert not (plain / CONFIG).exists()
    assert not [name for name in load_file(plain / "model.safetensors") if "lora" in name or "base_layer" in name]
    assert type(AutoModelForCausalLM.from_pretrained(plain)).__name__ == "GPT2LMHeadModel"

    checkpoint = tmp_path / "run" / "checkpoint-4"
    pattern = json.loads((checkpoint / CONFIG).read_text())["rank_pattern"]
    assert 3 in pattern.values() or json.loads((checkpoint / CONFIG).read_text())["r"] == 3
    # The same command goes on with the run; with another rank it does not.
    assert run(tmp_path, *options, *saving, "--resume_from_checkpoint", "true", "--max_steps", "6") == 0
    again = [*options, *saving, "--resume_from_checkpoint", "true", "--max_steps", "8"]
    assert run(tmp_path, *again, "--lora_r", "3") == 2

    # A checkpoint, moved elsewhere, is a model with adapters to start from.
    moved = shutil.copytree(checkpoint, tmp_path / "moved")
    shutil.copytree(plain, moved, dirs_exist_ok=True, ignore=lambda _, names: [n for n in names if "token" not in n])
    start = ["--model_name_or_path", str(moved), "--block_size", "16", "--train_file", text, *QUICK]
    second = ["--output_dir", str(tmp_path / "second"), *start, "--save_merged", "false", "--lora_freeze_base", "all"]
    assert main(second) == 0
    model = tmp_path / "second" / "model"
    assert {CONFIG, WEIGHTS, "model.safetensors"} <= {path.name for path in model.iterdir()}
    before, after = (load_file(folder / "model.safetensors") for folder in (moved, model))
    assert before.keys() == after.keys()
    assert all(bool((before[name] == after[name]).all()) for name in before), "the base was frozen"
    before, after = (load_file(folder / WEIGHTS) for folder in (moved, model))
    assert before.keys() == after.keys()
    assert not any(bool((before[name] == after[name]).all()) for name in before)


def test_a_start_from_adapters_with_other_adapters(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--train_file", text, "--lora_r", "2", "--no_save_merged") == 0
    model = tmp_path / "run" / "model"
    start = ["--model_name_or_path", str(model), "--block_size", "16", "--train_file", text, *QUICK]
    assert main(["--output_dir", str(tmp_path / "second"), *start, "--lora_r", "4", "--lora_alpha", "3"]) == 2
    message = capsys.readouterr().err
    assert "lora_r: the model has adapters already; leave it out, or start from a merged model" in message
    assert "lora_alpha: is 3.0, but the model has adapters already, with 8; leave it out" in message
    (model / WEIGHTS).write_bytes(b"")
    assert main(["--output_dir", str(tmp_path / "second"), *start]) == 2
    assert f"{model / WEIGHTS}: cannot be read" in capsys.readouterr().err
    (model / "model.safetensors").unlink()
    assert main(["--output_dir", str(tmp_path / "second"), *start]) == 2
    message = capsys.readouterr().err
    assert "model.safetensors" in message
    assert "its weights cannot be loaded" in message
    (model / "config.json").unlink()
    assert main(["--output_dir", str(tmp_path / "second"), *start]) == 2
    assert "it holds adapters only: save them beside their base model" in capsys.readouterr().err


def test_a_schedule_that_does_not_fit(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = write(
        tmp_path,
        "- {name: decrease_vocab_lora_scaling, value: 2, max_wait_iters: 1}\n"
        "- {name: set_layer_lora_rank, value: [attn.0, 99], max_wait_iters: 1}\n",
        "schedule.yaml",
    )
    assert run(tmp_path, "--train_file", text, "--lora_r", "2", "--scaling_schedule_file", wrong) == 2
    first, second = capsys.readouterr().err.splitlines()[:2]
    assert "schedule.yaml:1: entry 1 (decrease_vocab_lora_scaling)" in first
    assert "no adapter on its embedding, whose rank could change; set_embedding_lora_rank makes one" in first
    assert "schedule.yaml:2: entry 2 (set_layer_lora_rank)" in second
    assert "rank 99 is above 16" in second
