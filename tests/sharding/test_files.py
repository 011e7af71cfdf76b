"""What every process writes by itself is what torch's distributed checkpoint writes with all of them together."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from morphing_trainer.sharding.files import Rows, load_state, own_pieces, write_pieces
from tests.trainer.program import finish, started

WHOLE = {
    "a/exp_avg": torch.arange(12.0).view(4, 3),
    "b/exp_avg": torch.arange(3.0),  # fewer rows than four processes: the last one has none
    "c/exp_avg": torch.arange(35, dtype=torch.bfloat16).view(5, 7),
    "d/exp_avg_sq": torch.arange(16, dtype=torch.float64).view(2, 2, 2, 2),
}


@dataclass(frozen=True)
class Writes:
    """Attributes:
    mesh: processes that divide the rows; with two numbers, so many copies of each, and processes that divide.
    """

    folder: Path
    mesh: tuple[int, ...]


def written(job: Writes, environment: Mapping[str, str]) -> None:
    """In a process: the same tensors, written in both ways."""
    rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    address = f"tcp://{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", job.mesh)
    places = [Replicate()] * (len(job.mesh) - 1) + [Shard(0)]
    # Of the second one, two processes have no rows when there are four; torch's way leaves one of these out.
    names = [name for name in WHOLE if world == 2 or name != "d/exp_avg_sq" or len(job.mesh) == 2]
    pieces = {name: distribute_tensor(WHOLE[name], mesh, places) for name in names}
    rows = own_pieces(pieces)
    writer = HuggingFaceStorageWriter(str(job.folder / "theirs"), save_distributed=True)
    save(dict(pieces), storage_writer=writer)
    dist.destroy_process_group()
    write_pieces(job.folder / "ours", rows, rank)  # no other process is needed


def parts(path: Path) -> tuple[Any, bytes]:
    """Header and tensors of a safetensors file; the order of the header's entries is drawn anew for every file."""
    text = path.read_bytes()
    length = int.from_bytes(text[:8], "little")
    header = json.loads(text[8 : 8 + length])
    header["__metadata__"]["DCP_SHARDING_INFO"] = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
    return header, text[8 + length :]


def read(folder: Path) -> dict[str, torch.Tensor]:
    found = {name: torch.full_like(tensor, -1) for name, tensor in WHOLE.items()}
    held = {name for path in folder.iterdir() for name in load_file(path)}
    targets = {name: tensor for name, tensor in found.items() if name in held}
    load(dict(targets), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return targets


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of torch's reader, for its own internals
@pytest.mark.parametrize("processes", [2, 4])
def test_the_files_are_those_of_the_collective_way(processes: int, tmp_path: Path) -> None:
    assert finish(started(written, Writes(tmp_path, (processes,)), processes)) == [0] * processes
    ours, theirs = (sorted((tmp_path / name).iterdir()) for name in ("ours", "theirs"))
    assert [path.name for path in ours] == [path.name for path in theirs]
    assert len(ours) == processes
    for mine, other in zip(ours, theirs, strict=True):
        assert parts(mine) == parts(other)
    found = read(tmp_path / "ours")
    assert len(found) == {2: 4, 4: 3}[processes]
    assert all(torch.equal(tensor, WHOLE[name]) for name, tensor in found.items())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_of_copies_one_is_written(tmp_path: Path) -> None:
    """Two processes divide the rows, two others keep the same ones."""
    assert finish(started(written, Writes(tmp_path, (2, 2)), 4)) == [0] * 4
    files = [load_file(path) for path in sorted((tmp_path / "ours").iterdir())]
    for name, whole in WHOLE.items():
        assert sum(len(file[name]) for file in files) == len(whole)
    found = read(tmp_path / "ours")
    assert found.keys() == WHOLE.keys()
    assert all(torch.equal(tensor, WHOLE[name]) for name, tensor in found.items())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_processes_without_rows(tmp_path: Path) -> None:
    """Of a tensor with two rows the last two of four processes have none; it is read whole all the same."""
    rows = torch.arange(6.0).view(2, 3)
    for rank, (start, end) in enumerate(itertools.pairwise([0, 1, 2, 2, 2])):
        write_pieces(tmp_path / "ours", {"a/exp_avg": Rows(rows[start:end], start)}, rank)
    target = {"a/exp_avg": torch.zeros(2, 3)}
    load(target, storage_reader=HuggingFaceStorageReader(str(tmp_path / "ours")), no_dist=True)
    assert torch.equal(target["a/exp_avg"], rows)


def test_what_is_loaded_does_not_hold_the_file(tmp_path: Path) -> None:
    """A checkpoint that is deleted later must leave the disk, and what is trained must not change with a file."""
    model = torch.nn.Linear(300, 300)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    before = optimizer.state_dict()
    torch.save(before, tmp_path / "optimizer.pt")
    new = torch.optim.AdamW(model.parameters())
    load_state(tmp_path, new, model, [["weight", "bias"]])
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert torch.equal(new.state_dict()["state"][0]["exp_avg"], before["state"][0]["exp_avg"])
    assert new.state_dict()["state"][1]["step"] == 1
