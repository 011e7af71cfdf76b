"""What is timed does what it should: the same first step, a resume at the right place."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from benchmarks import results, start
from benchmarks.results import Kept
from benchmarks.start import FIRST_LINE, NEAR, make_run, parser, resume, table

WORDS = ["--rounds", "1", "--layers", "1", "--hidden", "32", "--far", "130", "--samples", "5000"]


@pytest.mark.parametrize(
    ("line", "loss"),
    [
        ("step 1/1: loss 6.225, lr 5e-5, grad norm 1.04, 2.31k tokens/s", 6.225),
        ("{'loss': '6.128', 'grad_norm': '1.024'}", 6.128),
        ("{'loss': 6.128, 'grad_norm': 1.024}", 6.128),
        ("Training from step 0 to 1: 2 x 64", None),
        ("{'train_runtime': '0.2384', 'train_loss': '6.128'}", None),
    ],
)
def test_the_line_of_the_first_step(line: str, loss: float | None) -> None:
    found = FIRST_LINE.match(line)
    assert (float(found[1] or found[2]) if found else None) == loss


def test_a_command_that_fails() -> None:
    with pytest.raises(RuntimeError, match="ended with 3, first step told: None\nhalf"):
        start.to_first_line([start.sys.executable, "-c", "print('half'); raise SystemExit(3)"])


def test_a_resume(tmp_path: Path) -> None:
    """The run has made its steps and log lines, and goes on at the sample behind the last."""
    file = tmp_path / "tokens.bin"
    np.random.default_rng(0).integers(0, start.VOCABULARY, (600, start.LENGTH), np.uint16).tofile(file)
    make_run(tmp_path / "run", file, 30)
    state = start.trainer(start.Idle, tmp_path / "run", file, 30).state.load_from_json(
        str(tmp_path / "run" / "checkpoint-30" / "trainer_state.json")
    )
    assert state.global_step == 30
    assert [entry["step"] for entry in state.log_history] == [10, 20, 30]
    seconds, position = resume(tmp_path / "run", file, 30)
    assert position == 30 * start.BATCH
    assert seconds > 0


def test_the_table() -> None:
    options = parser().parse_args(["--rounds", "2"])
    names = ["train.py", "plain Trainer", f"resume {NEAR}", "resume 100000", "--help", "validate x.yaml"]
    found = table({name: [2.0 + number, 3.0 + number] for number, name in enumerate(names)}, options)
    assert all(len(row) == len(found.columns) for row in found.rows)
    assert found.rows[0] == [
        "train.py to its first step",
        "2.50 s",
        "plain Trainer: 3.50 s",
        "-1.00 s (-1.00 to -1.00)",
    ]
    assert found.rows[1][0] == "resume at step 100,000" and found.rows[1][3].startswith("+1.00 s")
    assert [row[0] for row in found.rows[2:]] == ["`morph --help`", "`morph validate x.yaml`"]


@pytest.mark.long  # it starts processes
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails if the first losses differ, or if a resume is elsewhere than it should be."""
    monkeypatch.setattr(results, "KEPT", tmp_path)
    monkeypatch.setattr("sys.argv", ["start", *WORDS, "--keep", "found"])
    start.main()
    kept = Kept.load(tmp_path / "found.json")
    assert len(kept.table.rows) == 4
    assert isinstance(parser().parse_args(kept.command.split()[3:]), argparse.Namespace)
