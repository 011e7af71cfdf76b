"""Whatever happens to one rank, at whatever point: all stop, soon, and the others say what it was."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.failing import POINTS, Failing, launched
from tests.trainer.program import finish

SECONDS = 20.0
"""Within which the others have ended."""


def failed(job: Failing, processes: int = 2) -> list[dict[str, Any]]:
    """What the ranks that live have come to; all have, in time."""
    codes = finish(launched(job, processes), seconds=90)
    logs = "\n".join(path.read_text()[-3000:] for path in job.folder.parent.glob(f"{job.folder.name}-*.log"))
    expected = [-9 if job.how == "kill" and rank == job.rank else 0 for rank in range(processes)]
    assert codes == expected, logs
    told = [json.loads(job.told(rank).read_text()) for rank in range(processes) if job.told(rank).exists()]
    moment = float(job.moment.read_text())
    assert all(each["time"] - moment < SECONDS for each in told), told
    return told


WHOLE = [point for point in POINTS if point != "moving rows"]
SHARDED = [point for point in POINTS if point not in ("growing", "digest", "optimizer", "publishing")]


def points(soon: set[tuple[str, int]], chosen: Iterable[str] = tuple(WHOLE)) -> list[Any]:
    """Every point on both ranks, or on the one that comes to it; those in `soon` for CI."""
    pairs = [
        (point, rank) for point in chosen for rank in (0, 1) if rank == 0 or point not in ("staging", "publishing")
    ]
    return [pytest.param(*pair, marks=() if pair in soon else pytest.mark.long) for pair in pairs]


@pytest.mark.parametrize(
    ("point", "rank"), points({("forward", 1), ("data", 0), ("wrapping again", 1), ("opening", 1), ("end", 0)})
)
def test_an_error_at_any_point(tmp_path: Path, point: str, rank: int) -> None:
    told_by_the_other(Failing(tmp_path / "run", point, rank))


@pytest.mark.parametrize(("point", "rank"), points({("forward", 1), ("moving rows", 0)}, SHARDED))
def test_an_error_at_any_point_of_a_sharded_run(tmp_path: Path, point: str, rank: int) -> None:
    told_by_the_other(Failing(tmp_path / "run", point, rank, sharded=True))


def told_by_the_other(job: Failing) -> None:
    rank, told = job.rank, failed(job)
    own, other = told[rank], told[1 - rank]
    assert (own["type"], own["text"]) == ("ValueError", "this rank has had enough")
    assert other["type"] == "RankError"
    assert other["text"] == f"rank {rank} failed, so all ranks stop: ValueError: this rank has had enough"


@pytest.mark.parametrize(("point", "rank"), points({("forward", 0)}))
def test_killed_at_any_point(tmp_path: Path, point: str, rank: int) -> None:
    """SIGKILL leaves no word; also rank 0, with which the store is gone."""
    (other,) = failed(Failing(tmp_path / "run", point, rank, how="kill"))
    assert other["type"] == "RankError"
    assert f"rank {1 - rank} stops: a connection to another rank was lost" in other["text"]


@pytest.mark.parametrize(
    ("how", "raised", "said"),
    [
        pytest.param("runtime", "RuntimeError", "RuntimeError: this rank has had enough", marks=pytest.mark.long),
        pytest.param("exit", "SystemExit", "SystemExit: 3", marks=pytest.mark.long),
        pytest.param("interrupt", "KeyboardInterrupt", "KeyboardInterrupt", marks=pytest.mark.long),
        pytest.param("memory", "OutOfMemoryError", "out of memory in step 2 with 2 samples", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_whatever_ends_a_rank(tmp_path: Path, how: str, raised: str, said: str, rank: int) -> None:
    told = failed(Failing(tmp_path / "run", "forward", rank, how))
    assert told[rank]["type"] == raised
    assert told[1 - rank]["text"].startswith(f"rank {rank} failed, so all ranks stop: {said}")


@pytest.mark.long
@pytest.mark.parametrize("how", ["raise", "kill"])
def test_four_ranks(tmp_path: Path, how: str) -> None:
    """All hear of it, also those that wait for one that has only heard of it."""
    told = failed(Failing(tmp_path / "run", "forward", 2, how), 4)
    assert {each["type"] for each in told} == ({"RankError", "ValueError"} if how == "raise" else {"RankError"})


@pytest.mark.parametrize(
    ("drift", "where", "what"),
    [
        ("weight", "after stack_layers at step 2", "transformer.h.0.mlp.c_proj.bias (weight): other values on rank 1"),
        (
            "exp_avg",
            "after stack_layers at step 2",
            "transformer.h.0.mlp.c_proj.bias (exp_avg): other values on rank 1",
        ),
        pytest.param(
            "setting",
            "step 4: new settings",
            "warmup_steps (setting): 5 on rank 1, 0 on rank 0",
            marks=pytest.mark.long,
        ),
        pytest.param(
            "batch", "where the run begins", "batch_size (setting): 3 on rank 1, 2 on rank 0", marks=pytest.mark.long
        ),
        ("schedule", "where the run begins", "entry 2 (schedule): {"),
    ],
)
def test_ranks_that_differ_stop(tmp_path: Path, drift: str, where: str, what: str) -> None:
    """A weight differs by 1e-6 in one place; DDP would send rank 0's to the others, and nobody would ever know."""
    job = Failing(tmp_path / "run", drift)
    codes = finish(launched(job), seconds=90)
    told = [json.loads(job.told(rank).read_text()) for rank in (0, 1)]
    assert codes == [0, 0]
    for each in told:
        assert each["type"] == "RankError"
        assert each["text"].startswith(f"{where}: the ranks differ in {what}")
        assert each["intact"], "the connections are in order"
        assert each["layers"] == (2 if drift == "setting" else 1)


def test_ranks_that_load_another_optimizer_stop(tmp_path: Path) -> None:
    assert finish(launched(Failing(tmp_path / "run")), seconds=90) == [0, 0]
    job = Failing(tmp_path / "run", "loaded", resume=True, options={"max_steps": 9})
    assert finish(launched(job), seconds=90) == [0, 0]
    for rank in (0, 1):
        told = json.loads(job.told(rank).read_text())
        assert told["type"] == "RankError", told
        assert "the ranks differ in transformer.h.0.mlp.c_proj.bias (exp_avg): other values on rank 1" in told["text"]
