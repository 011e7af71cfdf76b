"""What ranks agree on, in real processes over gloo."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from morphing_trainer.run.consensus import Consensus
from morphing_trainer.run.digest import agree
from tests.trainer.program import finish, started


@dataclass(frozen=True)
class Meeting:
    folder: Path
    what: str


def settle(consensus: Consensus, rank: int) -> None:
    consensus.settle(None)
    consensus.settle(OSError("the disk is full") if rank == 1 else None)


def hold(consensus: Consensus, rank: int) -> None:
    """The same moments, then others."""
    moments = {"a": {"exp_avg": torch.ones(3)}}
    agree(consensus, (), moments, "the optimizer of x")
    moments["a"]["exp_avg"][2] += 1e-6 * rank
    agree(consensus, (), moments, "the optimizer of x")


WHAT: dict[str, Callable[[Consensus, int], None]] = {"settle": settle, "hold": hold}


def meet(job: Meeting, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    dist.init_process_group("gloo")
    consensus, rank = Consensus(), dist.get_rank()
    try:
        WHAT[job.what](consensus, rank)
        said = "nothing"
    except Exception as error:
        said = f"{type(error).__name__}: {error}, {'known' if consensus.known is error else 'unknown'}"
    (job.folder / str(rank)).write_text(said)
    dist.destroy_process_group()


def told(folder: Path, what: str) -> list[str]:
    assert finish(started(meet, Meeting(folder, what), 2), 60) == [0, 0]
    return [(folder / str(rank)).read_text() for rank in range(2)]


def test_all_raise_or_none_does(tmp_path: Path) -> None:
    assert told(tmp_path, "settle") == [
        "RankError: rank 1 failed, so all ranks stop: OSError: the disk is full, known",
        "OSError: the disk is full, known",
    ]


def test_all_hold_the_same_moments(tmp_path: Path) -> None:
    for said in told(tmp_path, "hold"):
        assert said.startswith("RankError: the optimizer of x: the ranks differ in a (exp_avg): other values on rank 1")
        assert said.endswith("known") and not said.endswith("unknown")
