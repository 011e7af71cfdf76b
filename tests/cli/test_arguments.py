"""Config files and command line: precedence, types, and every error with its place and its advice."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers.trainer_utils import IntervalStrategy, SchedulerType

from morphing_trainer.cli.arguments import Arguments, DataArguments, ModelArguments, parse
from morphing_trainer.config import MorphingConfig
from morphing_trainer.documents import DocumentError
from morphing_trainer.errors import ConfigError
from morphing_trainer.lora_arguments import LoraArguments


def write(folder: Path, text: str, name: str = "run.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def problems(argv: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(argv)
    return str(caught.value).splitlines()


def test_nothing_given_gives_the_defaults() -> None:
    arguments = parse([])
    assert arguments == Arguments(ModelArguments(), DataArguments(), LoraArguments(), arguments.training)
    assert type(arguments.training) is MorphingConfig
    assert arguments.training.output_dir == "runs/run"
    assert arguments.model.activation_function == "gelu_pytorch_tanh"
    assert arguments.training.learning_rate == MorphingConfig(output_dir="x").learning_rate


def test_command_line_wins_over_later_file_wins_over_earlier_file(tmp_path: Path) -> None:
    base = write(tmp_path, "learning_rate: 1e-3\nmax_steps: 10\nn_layer: 2\nseed: 7\n", "base.yaml")
    mine = write(tmp_path, "max_steps: 20\nn_layer: 3\nseed: null\n", "mine.yaml")
    for argv in (["--config", base, "--config", mine], ["--config", base, mine]):
        arguments = parse(["--n_layer", "5", *argv])
        assert arguments.training.learning_rate == 1e-3
        assert arguments.training.max_steps == 20
        assert arguments.model.n_layer == 5
        assert arguments.training.seed == 7  # null: not given
        assert arguments.training.output_dir == "runs/mine"
    assert parse(["--config", base, "--output_dir", "elsewhere"]).training.output_dir == "elsewhere"


def test_a_value_reads_the_same_from_every_source(tmp_path: Path) -> None:
    yaml = "learning_rate: 1e-3\nmax_steps: 12\nwarmup_steps: 3\nlr_scheduler_type: cosine_with_restarts\n"
    yaml += "lr_scheduler_kwargs: {num_cycles: 2}\naccelerator_config: {even_batches: false}\neval_strategy: no\n"
    yaml += "use_cpu: true\nreport_to: [none]\ntrain_file: [a.txt, b.txt]\nn_inner: 64\ndtype: float64\nfsdp: false\n"
    data: dict[str, Any] = {"learning_rate": 1e-3, "max_steps": 12, "warmup_steps": 3, "fsdp": False}
    data |= {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}, "use_cpu": True}
    data |= {"accelerator_config": '{"even_batches": false}', "eval_strategy": "no", "report_to": ["none"]}
    data |= {"train_file": ["a.txt", "b.txt"], "n_inner": 64, "dtype": "float64"}
    line = "--learning_rate 1e-3 --max_steps=12 --warmup-steps 3 --lr_scheduler_type cosine_with_restarts --use_cpu"
    line += " --eval_strategy no --report_to none --train_file a.txt b.txt --n_inner 64 --dtype float64 --fsdp false"
    argv = [*line.split(), "--lr_scheduler_kwargs", '{"num_cycles": 2}']
    argv += ["--accelerator_config", '{"even_batches": false}', "--output_dir", "out"]
    from_yaml = parse(["--config", write(tmp_path, yaml), "--output_dir", "out"])
    from_json = parse(["--config", write(tmp_path, json.dumps(data), "run.json"), "--output_dir", "out"])
    from_line = parse(argv)
    assert from_yaml.model == from_json.model == from_line.model
    assert from_yaml.data == from_json.data == from_line.data
    assert from_yaml.training.to_dict() == from_json.training.to_dict() == from_line.training.to_dict()
    training = from_yaml.training
    assert training.lr_scheduler_type is SchedulerType.COSINE_WITH_RESTARTS
    assert training.lr_scheduler_kwargs == {"num_cycles": 2}
    assert training.eval_strategy is IntervalStrategy.NO
    assert training.accelerator_config.even_batches is False
    assert training.warmup_steps == 3.0
    assert isinstance(training.warmup_steps, float)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--use_cpu"], True),
        (["--use_cpu", "true"], True),
        (["--use_cpu=false"], False),
        (["--no_use_cpu"], False),
        (["--no-use-cpu"], False),
        ([], True),
    ],
)
def test_booleans(tmp_path: Path, argv: list[str], expected: bool) -> None:
    config = write(tmp_path, "use_cpu: true\n")
    assert parse(["--config", config, *argv]).training.use_cpu is expected


def test_booleans_that_are_on_or_unset_by_default() -> None:
    assert parse([]).training.remove_unused_columns is True
    assert parse(["--no_remove_unused_columns"]).training.remove_unused_columns is False
    assert parse(["--ddp_static_graph"]).training.ddp_static_graph is True
    assert parse(["--no_ddp_static_graph"]).training.ddp_static_graph is False
    assert parse([]).training.ddp_static_graph is None


@pytest.mark.parametrize(
    ("argv", "text", "expected"),
    [
        (["--resume_from_checkpoint", "true"], "", "true"),
        (["--resume_from_checkpoint"], "", "true"),
        (["--resume_from_checkpoint", "True"], "", "true"),
        (["--resume_from_checkpoint", "runs/x/checkpoint-5"], "", "runs/x/checkpoint-5"),
        ([], "resume_from_checkpoint: true", "true"),
        ([], "resume_from_checkpoint: runs/x", "runs/x"),
        ([], "resume_from_checkpoint: false", None),
        (["--resume_from_checkpoint", "false"], "resume_from_checkpoint: true", None),
        ([], "", None),
    ],
)
def test_resume_from_checkpoint(tmp_path: Path, argv: list[str], text: str, expected: str | None) -> None:
    config = write(tmp_path, f"seed: 1\n{text}\n")
    assert parse(["--config", config, *argv]).training.resume_from_checkpoint == expected


def test_all_problems_of_a_file_are_reported_at_once_in_order(tmp_path: Path) -> None:
    lines = {
        "learning_rate: '1e-3'": "learning_rate: expected a number, got the text '1e-3'; remove the quotes",
        "max_steps: 1.5": "max_steps: expected a whole number, got the number 1.5",
        "n_layer: four": "n_layer: expected a whole number, got the text 'four'",
        "n_head: 2\nn_head: 4": "the key 'n_head' was already given in line 4; keep one of them",
        "lr_scheduler_type: cosin": "lr_scheduler_type: 'cosin' is not a valid value; did you mean 'cosine'?",
        "learning_rte: 3": "learning_rte: no such argument; did you mean 'learning_rate'?",
        "max-steps: 3": "max-steps: no such argument; did you mean 'max_steps'?",
        "lr: 3": "lr: no such argument; did you mean 'learning_rate'?",
        "batchsize: 3": "batchsize: no such argument; did you mean 'batch_size'?",
        "qwqwqw: 3": "qwqwqw: no such argument; --help lists all names",
        "run_name: 5": "run_name: expected text, got the number 5; put it in quotes",
        "bf16: 1": "bf16: expected true or false, got the number 1",
        "use_cpu: yes": "use_cpu: expected true or false, got the text 'yes'",
        "activation_checkpointing: 1": "activation_checkpointing: expected true or false, got the number 1",
        "seed: true": "seed: expected a whole number, got true",
        "lr_scheduler_kwargs: 3": "lr_scheduler_kwargs: expected a mapping, got the number 3",
        "log_level: warn": "log_level: 'warn' is not a valid value; did you mean 'warning'?",
        "dtype: 16": "dtype: expected one of float32, bfloat16, float16, float64, auto, got the number 16",
        "label_names: a": "label_names: expected a list of texts, got the text 'a'",
        "report_to: {a: b}": "report_to: expected a list of texts or text, got a mapping",
        "debug: foo": "debug: 'foo' is not a valid value; valid are tpu_metrics_debug, underflow_overflow",
    }
    config = write(tmp_path, "\n".join(lines) + "\n")
    text = Path(config).read_text().splitlines()
    expected = []
    for entry, message in lines.items():
        last = entry.splitlines()[-1]
        expected.append(f"{config}:{text.index(last) + 1}: {message}")
    assert problems(["--config", config]) == expected


def test_problems_of_several_files_are_reported_together(tmp_path: Path) -> None:
    one = write(tmp_path, "nn_layer: 1\n", "one.yaml")
    two = write(tmp_path, '{"max_steps": "3",\n "seed": 1.5}', "two.json")
    found = problems(["--config", one, two])
    assert [line.split(": ")[0] for line in found] == [f"{one}:1", f"{two}:1", f"{two}:2"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learning_rat", "1"], "--learning_rat: no such option; did you mean '--learning_rate'?"),
        (["--learning_ra=1"], "--learning_ra: no such option; did you mean '--learning_rate'?"),
        (["--learn", "1"], "--learn: no such option; did you mean '--learning_rate'?"),  # no silent abbreviation
        (["--max_steps", "x"], "--max_steps: expected a whole number, got 'x'"),
        (["--max-steps", "1.5"], "--max_steps: expected a whole number, got '1.5'"),
        (["--max_steps"], "--max_steps: a value is missing; expected a whole number"),
        (["--learning_rate", "fast"], "--learning_rate: expected a number, got 'fast'"),
        (["--lr_scheduler_type", "cosin"], "--lr_scheduler_type: 'cosin' is not a valid value; did you mean 'cosine'?"),
        (["--eval_strategy", "step"], "--eval_strategy: 'step' is not a valid value; did you mean 'steps'?"),
        (["--log_level", "warn"], "--log_level: 'warn' is not a valid value; did you mean 'warning'?"),
        (["--dtype", "bfloat1"], "--dtype: 'bfloat1' is not a valid value; did you mean 'bfloat16'?"),
        (["--debug", "foo"], "--debug: 'foo' is not a valid value; valid are tpu_metrics_debug, underflow_overflow"),
        (["--use_cpu", "maybe"], "--use_cpu: expected true or false, got 'maybe'"),
        (["--liger_kernel_config", "x"], "--liger_kernel_config: expected a mapping, got 'x'"),
        (["--config"], "--config: a value is missing; expected a file"),
        (["train"], "unexpected 'train'; arguments are written --name value"),
        (["--use_cpu", "true", "extra"], "unexpected 'extra'; arguments are written --name value"),
    ],
)
def test_command_line_errors(argv: list[str], message: str) -> None:
    assert problems(argv) == [f"command line: {message}"]


def test_all_unknown_options_are_reported() -> None:
    assert [line.split(": ")[1] for line in problems(["--aaa", "1", "--bbb", "--max_steps", "3"])] == ["--aaa", "--bbb"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rate", "-1", "must be at least 0, is -1.0"),
        ("learning_rate", ".inf", "must be a finite number, is inf"),
        ("learning_rate", ".nan", "must be a finite number, is nan"),
        ("per_device_train_batch_size", "0", "must be at least 1, is 0"),
        ("gradient_accumulation_steps", "0", "must be at least 1, is 0"),
        ("n_embd", "-4", "must be at least 1, is -4"),
        ("block_size", "1", "must be at least 2, is 1"),
        ("max_steps", "0", "must be at least 1, or -1 to train for num_train_epochs, is 0"),
        ("dropout", "1.0", "must be at least 0 and below 1, is 1.0"),
        ("adam_beta2", "1", "must be at least 0 and below 1, is 1.0"),
        ("seed", "4294967296", "must be below 2**32, is 4294967296"),
        ("eval_iters", "0", "must be at least 1, is 0"),
        ("output_dir", "''", "is empty; give a folder"),
        (
            "deepspeed",
            "{}",
            "not supported; use FSDP2: accelerate launch --config_file accelerate_configs/fsdp2.yaml train.py ...",
        ),
        ("lr_scheduler_kwargs", "cycles", "expected a mapping in a file, or JSON such as '{\"key\": 1}', got 'cycles'"),
        ("fsdp_config", "no/such.json", "there is no file 'no/such.json'; give JSON or the path of a JSON file"),
        ("accelerator_config", "x" * 300, f"there is no file '{'x' * 300}'; give JSON or the path of a JSON file"),
        ("output_dir", f"runs/{'x' * 256}", "is too long for a path (261 characters); give a shorter one"),
        ("resume_from_checkpoint", "xyz/" * 1024, "is too long for a path (4,096 characters); give a shorter one"),
        ("train_file", f"[a.txt, {'x' * 300}]", "is too long for a path (300 characters); give a shorter one"),
        ("dataset_name", '"a\\0b"', "holds a NUL character; remove it"),
        ("accelerator_config", "{dispatch: 1}", "no such key 'dispatch'; did you mean 'dispatch_batches'?"),
    ],
)
def test_bad_values_name_their_place(tmp_path: Path, name: str, value: str, message: str) -> None:
    config = write(tmp_path, f"# a comment\n{name}: {value}\n")
    assert problems(["--config", config]) == [f"{config}:2: {name}: {message}"]


def test_bad_values_on_the_command_line() -> None:
    assert problems(["--learning_rate", "nan"]) == ["command line: learning_rate: must be a finite number, is nan"]
    assert problems(["--lr_scheduler_kwargs", "{a"])[0].startswith("command line: lr_scheduler_kwargs: is not JSON: ")


def test_numbers_too_large_for_a_float(tmp_path: Path) -> None:
    config = write(tmp_path, f"learning_rate: {'9' * 400}\n")
    assert problems(["--config", config])[0].startswith(f"{config}:1: learning_rate: expected a number")


@pytest.mark.parametrize(
    ("text", "argv", "where", "what"),
    [
        # raised by MorphingConfig, by TrainingArguments, and by both about two places
        ("seed: 1\nsave_total_limit: 1\n", [], ":2", "save_total_limit: must be at least 2, is 1"),
        ("lr_scheduler_type: reduce_lr_on_plateau\n", [], ":1", "requires an eval strategy"),
        ("fp16: true\nbf16: true\nuse_cpu: true\n", [], ":1, {}:2", "At most one of fp16 and bf16"),
        ("save_total_limit: 5\n", ["--save_total_limit", "0"], "command line", "must be at least 2, is 0"),
        ("eval_steps: 2.5\n", ["--eval_strategy", "steps"], ":1", "--eval_steps must be an integer if bigger than 1"),
    ],
)
def test_errors_of_the_config_class_name_their_place(
    tmp_path: Path, text: str, argv: list[str], where: str, what: str
) -> None:
    config = write(tmp_path, text)
    place = where if where == "command line" else config + where.format(config)
    found = "\n".join(problems(["--config", config, *argv]))
    assert found.startswith(f"{place}: ")
    assert what in found


def test_shape_of_a_new_model_next_to_a_checkpoint(tmp_path: Path) -> None:
    shape = write(tmp_path, "n_layer: 3\n", "shape.yaml")
    checkpoint = write(tmp_path, "model_name_or_path: gpt2\n", "checkpoint.yaml")
    both = write(tmp_path, "model_name_or_path: gpt2\nn_layer: 3\n", "both.yaml")
    what = "n_layer: has no effect with model_name_or_path 'gpt2', which has its own; remove one of them"
    assert problems(["--config", both]) == [f"{both}:2: {what}"]
    assert problems(["--config", checkpoint, "--n_layer", "3"]) == [f"command line: {what}"]
    assert problems(["--config", checkpoint, shape]) == [f"{shape}:1: {what}"]
    # A checkpoint asked for later takes the place of the file's shape.
    assert parse(["--config", shape, "--model_name_or_path", "gpt2"]).model.model_name_or_path == "gpt2"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.yaml", None, "there is no such file"),
        ("run.toml", "a = 1", "the suffix '.toml' is not known"),
        ("run.yaml", "", "the file is empty"),
        ("run.yaml", "a: [1\n", "fix the YAML syntax"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    path = str(tmp_path / name) if text is None else write(tmp_path, text, name)
    with pytest.raises(DocumentError, match=re.escape(message)):
        parse(["--config", path])


def test_a_file_that_is_no_mapping(tmp_path: Path) -> None:
    config = write(tmp_path, "- learning_rate\n")
    assert problems(["--config", config]) == [f"{config}: expected `name: value` pairs, got a list"]


def test_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: train.py [--config FILE ...] [--any_argument VALUE ...]\n\nTrain a GPT-2 that grows")
    positions = [text.index(f"{title} arguments:") for title in ("model", "data", "LoRA", "training")]
    assert positions == sorted(positions)
    assert "accelerate launch train.py --config configs/demo.yaml" in text
    for cls in (ModelArguments, DataArguments, LoraArguments):
        for entry in fields(cls):
            assert f"  --{entry.name} " in text
            assert len(entry.metadata["help"]) > 15
    words = " ".join(text.split())
    assert "--dtype float32|bfloat16|float16|float64|auto" in words
    assert "--use_cpu [true|false]" in words
    assert "(default: gelu_pytorch_tanh)" in words
    assert "--scaling_schedule_file" in words
    assert "(default: None)" not in words
    assert "--no_use_cpu" not in words
    assert "--use-cpu" not in words


def test_every_field_can_be_given_both_ways(tmp_path: Path) -> None:
    """No argument of the four classes is lost on the way."""
    from morphing_trainer.cli.groups import ALL

    classes = (ModelArguments, DataArguments, LoraArguments, MorphingConfig)
    known = {entry.name for cls in classes for entry in fields(cls)}
    assert set(ALL) == known - {"parallelism_config"}
    assert len(known) == sum(len(fields(cls)) for cls in classes)


def test_parsing_leaves_no_trace(tmp_path: Path) -> None:
    first = parse(["--n_layer", "9", "--learning_rate", "0.5"])
    second = parse([])
    assert first.model.n_layer == 9
    assert second.model.n_layer == ModelArguments().n_layer
    assert math.isclose(second.training.learning_rate, 5e-5)
