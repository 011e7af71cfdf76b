"""Rows that processes compute by themselves fit together, also where their libraries would decompose otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from morphing_trainer.lineage import factors
from morphing_trainer.lineage.factors import Directions
from morphing_trainer.lineage.lineage import Merged, Origin, Product, Truncated
from morphing_trainer.lineage.transplant import Whole
from morphing_trainer.run.consensus import Consensus
from morphing_trainer.sharding import ShardedMover, moving
from tests.trainer.program import finish, started

RANK, KEPT, SIZE_IN, SIZE_OUT = 4, 2, 6, 10
PRODUCT = Product("a", "b", 2.0)
ORIGINS: dict[str, Origin] = {
    "a": Truncated("a", PRODUCT, KEPT, 2.0, "a"),
    "b": Truncated("b", PRODUCT, KEPT, 2.0, "a"),
    "weight": Merged("weight", PRODUCT, transposed=False, beyond=KEPT),
}
SHAPES = {"a": (KEPT, SIZE_IN), "b": (SIZE_OUT, KEPT), "weight": (SIZE_OUT, SIZE_IN)}


@dataclass(frozen=True)
class Moves:
    """A rank is cut; the second process decomposes with the opposite signs, as another library might, or fails."""

    folder: Path
    fails: bool = False


def old() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"a": (RANK, SIZE_IN), "b": (SIZE_OUT, RANK), "weight": (SIZE_OUT, SIZE_IN)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def moved(job: Moves, environment: Mapping[str, str]) -> None:
    """In a process: cut the ranks of sharded tensors, and save what they are as a whole."""
    rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    address = f"tcp://{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    decompose = factors.decompose

    def otherwise(a: torch.Tensor, b: torch.Tensor) -> Directions:
        if job.fails:
            raise ValueError("it does not converge")
        found = decompose(a, b)
        return Directions(-found.left, found.values, -found.right)

    if rank == 1:
        factors.decompose = moving.decompose = otherwise
    shards = {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in old().items()}
    targets = {name: distribute_tensor(torch.zeros(shape), mesh, [Shard(0)]) for name, shape in SHAPES.items()}
    mover = ShardedMover(shards, targets, Consensus().settle)
    try:
        new = {name: mover.weight(name, origin) for name, origin in ORIGINS.items()}
        whole = {name: tensor.full_tensor() for name, tensor in new.items() if isinstance(tensor, DTensor)}
        torch.save(whole, job.folder / f"{rank}.pt")
    except Exception as error:
        (job.folder / f"{rank}.txt").write_text(f"{type(error).__name__}: {error}")
    dist.barrier()
    dist.destroy_process_group()


def test_all_use_one_decomposition(tmp_path: Path) -> None:
    assert finish(started(moved, Moves(tmp_path), 2)) == [0, 0]
    here, tensors = Whole(old()), old()
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, origin in ORIGINS.items():
            assert torch.equal(found[name], here.weight(name, origin)), name
        kept, rest = 2.0 * found["b"] @ found["a"], found["weight"] - tensors["weight"]
        torch.testing.assert_close(kept + rest, 2.0 * tensors["b"] @ tensors["a"])


def test_one_that_cannot_decompose_stops_all(tmp_path: Path) -> None:
    assert finish(started(moved, Moves(tmp_path, fails=True), 2)) == [0, 0]
    told = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert told[1] == "ValueError: it does not converge"
    assert told[0] == "RankError: rank 1 failed, so all ranks stop: ValueError: it does not converge"
