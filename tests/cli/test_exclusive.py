"""Options of training on the command line: two ways of saying one thing, limits, and what the rest of a run sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from morphing_trainer.cli.arguments import parse
from morphing_trainer.cli.train import main
from morphing_trainer.errors import ConfigError
from tests.cli.test_arguments import problems, write
from tests.cli.test_train import TEXT, run

CPU = ["--use_cpu", "--report_to", "none"]


def test_the_later_way_of_saying_it_wins(tmp_path: Path) -> None:
    file = write(tmp_path, "per_device_train_batch_size: 8\ngradient_accumulation_steps: 2\noptim: adagrad\n")
    training = parse(["--config", file, "--batch_size", "12", "--mini_batch_size", "4", *CPU]).training
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (4, 3)
    assert parse(["--config", file, "--optimizer", "sgd", *CPU]).training.optim == "sgd"
    two = write(tmp_path, "batch_size: 12\nmini_batch_size: 4\noptimizer_warmup_steps: 5\noptimizer: sgd\n", "two.yaml")
    training = parse(["--config", two, "--per_device_train_batch_size", "6", "--optim", "adafactor", *CPU]).training
    assert (training.batch_size, training.per_device_train_batch_size) == (None, 6)
    assert training.gradient_accumulation_steps == 1
    assert (training.optimizer, training.optim) == (None, "adafactor")
    assert parse(["--config", two, "--optimizer_warmup_fraction", "0.5", *CPU]).training.optimizer_warmup_steps == 0


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["--batch_size", "8", "--per_device_train_batch_size", "8"], "size: stands beside batch_size"),
        (["--mini_batch_size", "8", "--gradient_accumulation_steps", "2"], "stands beside mini_batch_size"),
        (["--optimizer", "sgd", "--optim", "sgd"], "optim: stands beside optimizer"),
        (["--optimizer_warmup_steps", "3", "--optimizer_warmup_fraction", ".1"], "beside optimizer_warmup_steps"),
        (["--batch_size", "0"], "batch_size: must be at least 1, is 0"),
        (["--mini_batch_size", "-1"], "mini_batch_size: must be at least 1, is -1"),
        (["--early_stopping_patience", "0"], "early_stopping_patience: must be at least 1, is 0"),
        (["--early_stopping_threshold", "-1"], "early_stopping_threshold: must be at least 0, is -1.0"),
        (["--optimizer_warmup_steps", "-1"], "optimizer_warmup_steps: must be at least 0, is -1"),
        (["--optimizer_warmup_fraction", "1"], "optimizer_warmup_fraction: must be at least 0 and below 1, is 1.0"),
        (["--momentum", "1"], "momentum: must be at least 0 and below 1, is 1.0"),
        (["--weight_decay", "-1"], "weight_decay: must be at least 0, is -1.0"),
        (["--optimizer", "sgdd"], "--optimizer: 'sgdd' is not a valid value; did you mean 'sgd'?"),
        (["--ignore_optimizer"], "ignore_optimizer: has no effect without resume_from_checkpoint"),
        (["--train_only", "attn.*"], "train_only: has no effect without default_freeze"),
        (["--fp16"], "fp16: needs a GPU, and this run is on the CPU"),
    ],
)  # fmt: skip
def test_what_is_refused(argv: list[str], what: str) -> None:
    assert any(what in problem for problem in problems([*argv, *CPU])), problems([*argv, *CPU])


def test_names_of_other_optimizers_are_checked() -> None:
    with pytest.raises(ConfigError, match="'adamw_torh' is not a valid value; did you mean 'adamw_torch'"):
        parse(["--optim", "adamw_torh", *CPU])


def test_decay_of_null_and_of_zero(tmp_path: Path) -> None:
    assert parse(["--config", write(tmp_path, "weight_decay: null\n"), *CPU]).training.weight_decay == 0.01
    assert parse(["--weight_decay", "0", *CPU]).training.weight_decay == 0.0
    assert parse(["--optimizer", "sgd", *CPU]).training.weight_decay == 0.0


def test_lists_and_flags(tmp_path: Path) -> None:
    file = write(tmp_path, "default_freeze: true\ntrain_only: [attn.*, ln_f]\ncheck_grads: true\n")
    from_file = parse(["--config", file, *CPU]).training
    from_line = parse(["--default_freeze", "--train_only", "attn.*", "ln_f", "--check_grads", *CPU]).training
    assert from_file.train_only == from_line.train_only == ["attn.*", "ln_f"]
    assert from_file.default_freeze and from_line.check_grads


def test_help_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "--optimizer adamw|adam|adagrad|sgd|rmsprop",
        "Default: adamw_torch_fused.",
        "0.01 for adamw and 0 for others",
        "Samples per optimizer step, over all processes.",
        "The same as mini_batch_size.",
        "auto goes on if `output_dir` holds a checkpoint, and else begins",
        "--train_only",
    ):
        assert part in text, part


def test_auto_and_a_new_optimizer_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    options = ["--train_file", str(text), "--save_strategy", "steps", "--save_steps", "2"]
    auto = [*options, "--resume_from_checkpoint", "auto"]
    assert run(tmp_path, *auto) == 0
    assert (tmp_path / "run" / "checkpoint-4").is_dir()
    assert run(tmp_path, *auto, "--max_steps", "6", "--ignore_optimizer", "--optimizer", "sgd") == 0
    journal = (tmp_path / "run" / "journal.jsonl").read_text()
    assert journal.count('"event": "start"') == journal.count('"event": "resume"') == 1
    assert '"name": "ignore_optimizer"' in journal
    assert main(["--output_dir", str(tmp_path / "run"), "--default_freeze", *options]) == 2
    assert "holds another run" in capsys.readouterr().err
