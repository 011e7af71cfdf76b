"""The command that measures on a GPU, kept alive where there is none. No timing is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.device.contest import BARE, OURS, contests
from benchmarks.device.morphs import OPERATIONS
from benchmarks.device.speed import CONTEST
from tests.benchmarks.device.pages import cells


def command(folder: Path, *options: str) -> tuple[dict[str, Any], str]:
    """What the real command writes."""
    files = ["--json", str(folder / "gpu.json"), "--markdown", str(folder / "gpu.md")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *files, *options], capture_output=True, text=True, env=environment
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return json.loads((folder / "gpu.json").read_text()), (folder / "gpu.md").read_text()


def test_the_command(tmp_path: Path) -> None:
    """All parts run; the trainers have trained the same; tables and goals are those of the figures."""
    data, page = command(tmp_path, "--tiny")
    assert data["failed"] == data["left_out"] == []
    (contest,) = contests(data["figures"])
    assert {kind: sorted(runs) for kind, runs in contest.runs.items()} == {kind: [0, 1] for kind in CONTEST}
    assert len({figures["flops_per_token"] for runs in contest.runs.values() for figures in runs.values()}) == 1
    if data["memory"] is None:  # on a CPU they add up in the same order
        assert contest.deviation(OURS) == 0
    assert (contest.deviation(OURS) or 0) < 1e-2
    assert (contest.deviation(BARE) or 0) < 1e-2
    morphs = [figures for figures in data["figures"] if figures["table"] == "morphs"]
    assert [figures["operation"] for figures in morphs] == list(OPERATIONS)
    assert all(figures["morph_s"] > 0 and figures["created_bytes"] > 0 for figures in morphs)
    assert [figures["batch"] for figures in data["figures"] if figures["table"] == "adjusting"] == [16]
    assert set(data["tables"]) == {"Speed", "Morphs", "Morphs in a run", "adjust_batch_size"}
    for title, table in data["tables"].items():
        assert cells(page, title) == [table["columns"], *table["rows"]]
    assert {row[3] for row in cells(page, "Goals")[1:]} == {"a tiny model"}
    assert data["versions"]["torch"] == torch.__version__
    assert f"`{data['command']}`" in page


@pytest.mark.long
def test_compiled(tmp_path: Path) -> None:
    data, page = command(tmp_path, "--tiny", "--compiled", "--minutes", "20")
    assert data["failed"] == data["left_out"] == []
    assert [row[1] for row in cells(page, "Speed")[1:]] == ["compiled"] * 3 + ["eager"] * 3
    first = next(each for each in data["figures"] if each["table"] == "in a run" and each["mode"] == "compiled")
    assert first["first_step_s"] > 5 * first["usual_step_s"]


@pytest.mark.gpu
def test_two_minutes_on_a_gpu(tmp_path: Path) -> None:
    """What there is time for is measured, the most important part first, and the rest is told of."""
    began = time.monotonic()
    data, page = command(tmp_path, "--minutes", "2")
    assert time.monotonic() - began < 150
    assert [line for line in data["failed"] if not line.endswith(": was cut off when the time was over")] == []
    small = contests(data["figures"])[0]
    assert (small.model, small.mode) == ("GPT-2 small", "compiled")
    speeds = {kind: small.median(kind, "tokens_per_s") for kind in small.runs}
    assert all(speeds.values()), small.runs
    assert (small.deviation(OURS) or 0) < 2e-2
    assert (small.median(BARE, "peak_bytes") or 0) > 16 * 124e6
    assert data["left_out"]
    assert all(line in page for line in data["left_out"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--minutes", "0"], "must be above 0"),
        (["--minutes", "soon"], "must be a number, is 'soon'"),
        (["--peak", "-1"], "must be above 0"),
        (["--json", "kept.json"], "exists already"),
        (["--markdown", "nowhere/gpu.md"], "there is no folder nowhere"),
    ],
)
def test_bad_options_are_refused_at_once(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept.json").write_text("mine")
    with pytest.raises(SystemExit) as error:
        gpu.main(options)
    assert error.value.code == 2
    assert message in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_what_a_gpu_would_measure_fits_into_the_budget() -> None:
    """By its own estimates, once; further rounds take what is left."""
    parts = gpu.parts_for_a_gpu(print)
    once = [each for each in parts if "round " not in each.name or each.name.endswith("round 1")]
    assert sum(each.seconds for each in once) <= 8 * 60 - gpu.BEFORE_AND_AFTER
    assert len({each.name for each in parts}) == len(parts)
    assert parts[: len(once)] == once
