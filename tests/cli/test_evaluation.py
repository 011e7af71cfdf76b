"""Evaluations of a run from the command line, and sampling from what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from morphing_trainer.cli import morph, train
from morphing_trainer.validation.names import METRICS

SMALL = ["--n_layer", "1", "--n_embd", "16", "--n_head", "2", "--vocab_size", "300", "--block_size", "16"]
QUICK = ["--max_steps", "4", "--per_device_train_batch_size", "2", "--use_cpu", "--seed", "1"]
EVALUATING = ["--eval_strategy", "steps", "--eval_steps", "2", "--eval_iters", "2", "--save_strategy", "steps"]
TEXT = "Grow a small model while it trains, and carry its memory along.\n" * 60


@pytest.fixture
def run(tmp_path: Path) -> list[str]:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    output = ["--output_dir", str(tmp_path / "run"), "--train_file", str(path)]
    return [*output, *SMALL, *QUICK, *EVALUATING, "--save_steps", "4"]


def logged(folder: Path) -> tuple[list[str], list[dict[str, float]]]:
    """Lines of the run log, and the logged evaluations."""
    state = json.loads((folder / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    evaluations = [line for line in state["log_history"] if "eval_loss" in line]
    return (folder / "run" / "logs" / "train.log").read_text().splitlines(), evaluations


def test_all_metrics_and_an_example_by_default(
    tmp_path: Path, run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(run) == 0
    lines, evaluations = logged(tmp_path)
    assert len(evaluations) == 2
    assert all(f"eval_{name}" in line for line in evaluations for name in METRICS)
    shown = capsys.readouterr().out
    for part in ("example, prompt: ", "example, truth: ", "example, prediction: ", "perplexity ", "word accuracy "):
        assert sum(part in line for line in lines) == 2, part
        assert shown.count(part) == 2
    assert next(line for line in lines if "example, truth" in line).split("truth: ")[1] in " ".join(TEXT.split())
    for source in ("run", "run/model", "run/checkpoint-4"):
        assert morph.main(["sample", str(tmp_path / source), "--prompt", "Grow", "--max_new_tokens", "3"]) == 0
        assert capsys.readouterr().out.startswith("Grow")


def test_none_when_not_wanted(tmp_path: Path, run: list[str]) -> None:
    assert train.main([*run, "--eval_metrics", "none", "--no_eval_example"]) == 0
    lines, evaluations = logged(tmp_path)
    assert not any(f"eval_{name}" in line for line in evaluations for name in METRICS)
    assert not any("example, " in line for line in lines)


def test_some_by_a_file(tmp_path: Path, run: list[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("eval_metrics: perplexity\neval_example_tokens: 1\n")
    assert train.main([*run, "--config", str(config)]) == 0
    lines, evaluations = logged(tmp_path)
    assert {name for name in METRICS if f"eval_{name}" in evaluations[0]} == {"perplexity"}
    assert any("example, " in line for line in lines)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--eval_metrics", "perplexity", "acuracy"], "eval_metrics: there is no metric 'acuracy'"),
        (["--eval_example_tokens", "0"], "eval_example_tokens: must be at least 1"),
    ],
)
def test_bad_values(run: list[str], capsys: pytest.CaptureFixture[str], options: list[str], said: str) -> None:
    assert train.main([*run, *options]) == 2
    assert said in capsys.readouterr().err
