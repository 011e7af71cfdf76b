"""What a recipe saves, computed by hand, and an experiment of seconds, stopped and gone on with."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from benchmarks.growth import run
from benchmarks.growth.experiment import load, variants
from benchmarks.growth.frontier import Frontier, savings
from benchmarks.growth.meter import Meter
from morphing_trainer.run.signals import RunInterrupted

SMALL = Path(run.HERE) / "small.yaml"


def test_between_two_runs_the_loss_falls_with_the_logarithm() -> None:
    frontier = Frontier.of([(1e3, 2.0), (1e1, 4.0)])
    assert frontier.cost(3.0) == pytest.approx(1e2)
    assert frontier.cost(4.0) == pytest.approx(1e1)
    assert frontier.cost(1.9) is None
    assert frontier.cost(4.1) is None


def test_a_run_that_a_cheaper_one_has_beaten_is_left_out() -> None:
    assert Frontier.of([(10, 3.0), (20, 3.5), (40, 2.0)]).points == ((10, 3.0), (40, 2.0))
    with pytest.raises(ValueError, match="two runs"):
        Frontier.of([(10, 3.0), (20, 3.5)])


def test_what_the_line_says_of_a_run_that_is_left_out() -> None:
    """The true curve hangs below its chords: what they say that a loss costs is more than it does."""
    hangs = Frontier.of([(1e1, 4.0), (1e2, 2.5), (1e3, 2.0)])
    assert hangs.left_out() == pytest.approx([10 ** (1 + 1.5) / 1e2])
    assert Frontier.of([(1e1, 4.0), (1e2, 3.0), (1e3, 2.0)]).left_out() == pytest.approx([1])
    assert Frontier.of([(1e1, 4.0), (1e3, 2.0)]).left_out() == []


def test_a_recipe_is_read_against_the_frontier_of_its_seed() -> None:
    scratch = {"scratch": True, "name": "s"}
    results = [
        {**scratch, "seed": 0, "flops": 10, "loss": 4.0},
        {**scratch, "seed": 0, "flops": 1000, "loss": 2.0},
        {**scratch, "seed": 1, "flops": 10, "loss": 5.0},
        {**scratch, "seed": 1, "flops": 1000, "loss": 3.0},
        {"scratch": False, "name": "r", "seed": 0, "flops": 50, "loss": 3.0},
        {"scratch": False, "name": "r", "seed": 1, "flops": 50, "loss": 2.9},  # better than any run from scratch
    ]
    (saving,) = savings(results)
    assert saving.losses == (3.0, 2.9)
    assert list(saving.ratios) == pytest.approx([2.0])


def test_recipes_end_at_the_target() -> None:
    experiment = load(SMALL)
    for variant in variants(experiment):
        if not variant.schedule:  # from scratch, or a control that never grows
            continue
        layers, mlp = variant.shape.layers, variant.shape.mlp
        for entry in variant.schedule:
            layers *= entry["value"] if entry["name"] == "stack_layers" else 1
            mlp *= entry["value"] if entry["name"] == "widen_mlp" else 1
        assert (layers, mlp) == (experiment.target.layers, experiment.target.mlp), variant.name
        assert all(entry["when"]["at_share"] <= 0.8 for entry in variant.schedule if "when" in entry)


TINY = """
name: tiny
target: {layers: 2, hidden: 16, heads: 2, mlp: 32}
block_size: 16
batch_size: 2
learning_rate: 1.0e-3
warmup_steps: 2
decay_share: 0.2
steps: 10
seeds: [0]
scratch: [6, 10]
recipes:
  grown:
    layers: 1
    schedule: [{name: stack_layers, value: 2, when: {at_share: 0.5}}]
"""


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of the command, for a tiny experiment in a folder of its own."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "a.txt").write_text("Tall oaks from little acorns grow. " * 200)
    options = ["--experiment", str(tmp_path / "tiny.yaml"), "--text", str(tmp_path / "a.txt")]
    return [*options, "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]


def results(tmp_path: Path, name: str = "tiny") -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((tmp_path / "results" / name).iterdir())]


def test_an_experiment(
    tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["run", *options])
    run.main()
    found = results(tmp_path)
    assert [result["name"] for result in found] == ["grown", "scratch, 10 steps", "scratch, 6 steps"]
    grown, longer, shorter = found
    assert grown["flops"] < longer["flops"]
    assert longer["flops"] * 6 == shorter["flops"] * 10
    assert len(grown["curve"]) == 10
    assert grown["curve"][-1][0] == pytest.approx(grown["flops"], rel=1e-3)
    capsys.readouterr()
    run.main()  # what is there is not trained again
    said = capsys.readouterr().out
    assert "TFLOP" not in said and "3 of the runs asked for are in" in said
    (tmp_path / "a.txt").write_text("Great oaks from little acorns grow. " * 200)
    with pytest.raises(SystemExit):
        run.main()
    assert "-0.json: is of a run with text {" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            ["--only", "shrunk"],
            "--only 'shrunk': no run is called so; they are scratch, 6 steps; scratch, 10 steps; grown",
        ),
        (["--seeds", "0", "77"], "--seeds [77]: "),
        (["--text", "nowhere.txt"], "No such file or directory: 'nowhere.txt'"),
        (["--experiment", "nowhere.yaml"], "No such file or directory: 'nowhere.yaml'"),
        (["--experiment", os.devnull], "/dev/null: is no experiment (Input should be a valid dictionary"),
        (["--text", os.devnull], "--text /dev/null: 0 characters are too few"),
    ],
)
def test_what_would_train_nothing_is_refused(
    options: list[str], wrong: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["run", *options, *wrong])
    with pytest.raises(SystemExit):
        run.main()
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("step", [3, 7])  # before it grows, and after
def test_a_run_that_is_stopped_goes_on(
    tmp_path: Path,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: int,
) -> None:
    class Stops(Meter):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                os.kill(os.getpid(), signal.SIGINT)
            super().on_step_end(args, state, control, **kwargs)

    command = ["run", *options, "--only", "grown"]
    monkeypatch.setattr("sys.argv", command)
    monkeypatch.setattr(run, "Meter", Stops)
    with pytest.raises(RunInterrupted):
        run.main()
    assert "the same command goes on from there" in capsys.readouterr().err
    assert not (tmp_path / "results" / "tiny" / "grown-0.json").exists()
    monkeypatch.setattr(run, "Meter", Meter)
    run.main()
    (stopped,) = results(tmp_path)
    whole_ = ["--runs", str(tmp_path / "whole" / "runs"), "--results", str(tmp_path / "whole" / "results")]
    monkeypatch.setattr("sys.argv", [*command, *whole_])
    run.main()
    (whole,) = results(tmp_path / "whole")
    for result in (stopped, whole):
        seconds = [seconds for _, seconds, _ in result["curve"]]
        assert seconds == sorted(seconds)
        assert 0 <= seconds[0] <= seconds[-1] <= result.pop("seconds")
        result["curve"] = [(flops, loss) for flops, _, loss in result["curve"]]
    assert stopped == whole
