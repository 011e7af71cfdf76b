"""`train.py` as a user meets it: right input, wrong input, a second run in the same folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from morphing_trainer.cli.train import main
from tests.support import tiny_model

SMALL = ["--n_layer", "1", "--n_embd", "16", "--n_head", "2", "--vocab_size", "300", "--block_size", "16"]
QUICK = ["--max_steps", "4", "--per_device_train_batch_size", "2", "--use_cpu", "--save_strategy", "no", "--seed", "1"]
TEXT = "Grow a small model while it trains, and carry its memory along.\n" * 60


def run(folder: Path, *options: str) -> int:
    return main(["--output_dir", str(folder / "run"), *SMALL, *QUICK, *options])


def schedule(folder: Path, *entries: dict[str, object]) -> str:
    path = folder / "schedule.yaml"
    path.write_text(yaml.safe_dump(list(entries)))
    return str(path)


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def test_trains_on_a_file_and_leaves_a_plain_model(tmp_path: Path, text: str) -> None:
    grow = schedule(tmp_path, {"name": "stack_layers", "value": 3, "max_wait_iters": 2})
    assert run(tmp_path, "--train_file", text, "--scaling_schedule_file", grow) == 0
    folder = tmp_path / "run" / "model"
    assert AutoModelForCausalLM.from_pretrained(folder).config.n_layer == 3
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("carry its memory")["input_ids"]) == "carry its memory"


def test_starts_from_a_local_checkpoint(tmp_path: Path, text: str) -> None:
    assert run(tmp_path, "--train_file", text) == 0
    start = str(tmp_path / "run" / "model")
    options = ["--model_name_or_path", start, "--block_size", "16", "--train_file", text, *QUICK]
    assert main(["--output_dir", str(tmp_path / "second"), *options]) == 0
    assert (tmp_path / "second" / "model" / "model.safetensors").exists()


def test_a_run_is_no_model(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder holds one."""
    assert run(tmp_path, "--train_file", text, "--save_strategy", "steps", "--save_steps", "2") == 0
    made = tmp_path / "run"
    capsys.readouterr()
    again = ["--train_file", text, "--model_name_or_path", str(made), "--output_dir", str(tmp_path / "again")]
    for inside in ("model", "checkpoint-4"):
        assert main(again) == 2
        told = capsys.readouterr().err
        assert told == f"error: command line: model_name_or_path: {str(made)!r} is a run; give {made / inside}\n"
        shutil.rmtree(made / "model", ignore_errors=True)
    for step in (2, 4):
        shutil.rmtree(made / f"checkpoint-{step}")
    assert main(again) == 2
    assert "this run has saved no checkpoint and no model yet" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_a_second_run_in_the_same_folder_is_refused_and_changes_nothing(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--train_file", text) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert run(tmp_path, "--train_file", text) == 2
    message = capsys.readouterr().err
    assert "holds another run" in message
    assert "--resume_from_checkpoint" in message
    assert "--overwrite_output_dir" in message
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert run(tmp_path, "--train_file", text, "--overwrite_output_dir") == 0


def test_resumes_where_it_stopped(tmp_path: Path, text: str) -> None:
    saving = ["--train_file", text, "--save_strategy", "steps", "--save_steps", "2"]
    assert run(tmp_path, *saving) == 0
    assert run(tmp_path, *saving, "--resume_from_checkpoint", "true", "--max_steps", "6") == 0
    assert (tmp_path / "run" / "checkpoint-6").is_dir()


def test_a_resume_under_another_model_is_refused(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    saving = ["--train_file", text, "--save_strategy", "steps", "--save_steps", "2"]
    assert run(tmp_path, *saving) == 0
    assert run(tmp_path, *saving, "--resume_from_checkpoint", "true", "--n_layer", "3", "--dropout", "0.5") == 2
    message = capsys.readouterr().err
    assert "n_layer (was 1, is 3)" in message
    assert "resid_pdrop (was 0.0, is 0.5)" in message


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--train_file", "nowhere.txt"], ["nowhere.txt", "does not exist"]),
        (["--train_flie", "x"], ["train_flie", "train_file"]),
        (["--learning_rate", "fast"], ["learning_rate", "fast"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--scaling_schedule_file", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--n_embd", "15"], ["n_embd", "15", "n_head"]),
        (["--save_total_limit", "1"], ["save_total_limit", "at least 2"]),
        (["--logging_nan_inf_filter"], ["logging_nan_inf_filter"]),
        (["--resume_from_checkpoint", "true"], ["nothing to resume"]),
        (["--resume_from_checkpoint", "nowhere"], ["nowhere", "does not exist"]),
        (["--deepspeed", "x.json"], ["deepspeed"]),
    ],
)
def test_wrong_input_is_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: list[str]
) -> None:
    assert run(tmp_path, *options) == 2
    captured = capsys.readouterr()
    for part in expected:
        assert part in captured.err
    assert "Traceback" not in captured.err
    assert not list(tmp_path.glob("run/checkpoint-*"))


def test_text_shorter_than_a_block(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "short.txt"
    path.write_text("Too short.\nReally.\n")
    assert run(tmp_path, "--train_file", str(path), "--block_size", "64") == 2
    assert "block" in capsys.readouterr().err


def test_a_tokenizer_that_is_too_large(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--train_file", text) == 0
    folder = tmp_path / "run" / "model"
    tiny_model(vocab_size=32).save_pretrained(tmp_path / "small")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "small")
    options = ["--model_name_or_path", str(tmp_path / "small"), "--train_file", text, "--block_size", "16", *QUICK]
    assert main(["--output_dir", str(tmp_path / "second"), *options]) == 2
    assert "vocabulary" in capsys.readouterr().err


def test_a_schedule_that_does_not_fit_the_model(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = schedule(
        tmp_path,
        {"name": "freeze_layer", "value": "attn.12", "max_wait_iters": 1},
        {"name": "stack_layers", "value": 1.5, "max_wait_iters": 1},
    )
    assert run(tmp_path, "--train_file", text, "--scaling_schedule_file", wrong) == 2
    message = capsys.readouterr().err
    assert "entry 1 (freeze_layer)" in message
    assert "entry 2 (stack_layers)" in message
    assert "schedule.yaml:" in message


def test_a_dead_model_is_not_saved_over_a_good_one(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--train_file", text, "--save_strategy", "steps", "--save_steps", "2") == 0
    before = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    options = ["--train_file", text, "--resume_from_checkpoint", "true", "--max_steps", "8", "--max_grad_norm", "1.0"]
    assert run(tmp_path, *options, "--learning_rate", "1e30") == 2
    assert "is NaN or infinite, so the run ends" in capsys.readouterr().err
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == before
