"""The optimizer of a sharded model on disk: every process writes and reads its own rows, and any number of them can
read what another number has written.

A checkpoint then holds `optimizer.pt` as ever, but with the param groups and single numbers only, and beside it the
folder `optimizer` with the moments, one safetensors file per process, as torch's distributed checkpoint has them and
reads them. Its own format would keep the index as a pickle; safetensors are data only.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer

from morphing_trainer.checkpoint.torch_files import read_torch_file
from morphing_trainer.checkpoint.trainer_files import OPTIMIZER, told
from morphing_trainer.errors import CheckpointError
from morphing_trainer.sharding.tensors import empty_share, local_part, own_rows, share_of

FOLDER = "optimizer"
SHARDED = "sharded"
"""Key in `optimizer.pt`: shape and type of every piece of state that lies in the folder."""

Names = Sequence[Sequence[str]]
"""Parameter names of each param group, in the order that the optimizer's `state_dict` numbers them."""


def split(state: Mapping[str, Any], names: Names) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An optimizer's `state_dict` as what goes into `optimizer.pt`, and the sharded pieces by parameter and key."""
    flat = [name for group in names for name in group]
    small: dict[int, dict[str, Any]] = {}
    pieces: dict[str, Tensor] = {}
    for number, entry in state["state"].items():
        small[number] = {key: value for key, value in entry.items() if not isinstance(value, DTensor)}
        pieces |= {f"{flat[number]}/{key}": value for key, value in entry.items() if isinstance(value, DTensor)}
    facts = {name: [list(piece.shape), str(piece.dtype)] for name, piece in pieces.items()}
    return {"state": small, "param_groups": state["param_groups"], SHARDED: facts}, pieces


@dataclass(frozen=True)
class Rows:
    """What one process keeps of a sharded tensor.

    Attributes:
        values: (own rows, ...).
        first: number of the first of them in the whole tensor.
    """

    values: Tensor
    first: int


def own_pieces(pieces: Mapping[str, Tensor]) -> dict[str, Rows]:
    """This process's rows of sharded tensors. Of processes that keep the same ones, the first has them written."""
    found = {}
    for name, piece in pieces.items():
        assert isinstance(piece, DTensor)
        place = piece.device_mesh.get_coordinate() or ()
        if not any(at for at, way in zip(place, piece.placements, strict=True) if isinstance(way, Replicate)):
            found[name] = Rows(local_part(piece.detach()), own_rows(piece).start)
    return found


def write_pieces(folder: Path, pieces: Mapping[str, Rows], rank: int) -> None:
    """Write this process's rows into `folder`, beside those of the others; none is waited for.

    The file is the one that torch's `HuggingFaceStorageWriter(save_distributed=True)` writes, which needs all processes
    to meet: in a thread beside the training they cannot.

    Raises:
        OSError, SafetensorError: if the disk refuses.
    """
    folder.mkdir(exist_ok=True)
    if not pieces:
        return
    path = folder / f"shard-{rank + 1:05}-model-00001-of-00001.safetensors"
    offsets = {name: {"saved_offsets": [own.first] + [0] * (own.values.ndim - 1)} for name, own in pieces.items()}
    facts = {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0", "format": "pt"}
    save_file({name: own.values.cpu().contiguous() for name, own in pieces.items()}, path, facts)
    with path.open("rb") as file:  # another machine, which hashes it, could not bring it to the disk
        os.fsync(file.fileno())


def is_divided(saved: Mapping[str, Any]) -> bool:
    """Whether what was read from an `optimizer.pt` has its moments in the folder beside it."""
    return SHARDED in saved


def load_state(folder: Path, optimizer: Optimizer, model: torch.nn.Module, names: Names) -> None:
    """Load the optimizer of a checkpoint, sharded or not, into a sharded or whole one.

    Args:
        folder: the checkpoint.
        names: of the parameters of `optimizer`, which are those of the checkpoint.

    Raises:
        CheckpointError: if it cannot be read, or does not fit.
    """
    path = folder / OPTIMIZER
    saved = read_torch_file(path)
    with told(path):
        state = {int(number): dict(entry) for number, entry in saved["state"].items()}
        if is_divided(saved):
            _read_pieces(folder / FOLDER, saved[SHARDED], state, model, names)
        else:
            _divide(state, model, names)
        for entry in state.values():  # the file is mapped, and must not be held
            entry |= {key: value.clone() for key, value in entry.items() if type(value) is Tensor}
        optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})


def _divide(state: Mapping[int, dict[str, Any]], model: torch.nn.Module, names: Names) -> None:
    """Keep the own rows of whole moments."""
    parameters = dict(model.named_parameters())
    for number, name in enumerate(name for group in names for name in group):
        like = parameters[name]
        for key, value in state.get(number, {}).items():
            if isinstance(value, Tensor) and value.ndim and isinstance(like, DTensor):
                state[number][key] = share_of(value.to(like.to_local().device), like)


def _read_pieces(
    folder: Path, facts: Mapping[str, Any], state: dict[int, dict[str, Any]], model: torch.nn.Module, names: Names
) -> None:
    numbers = {name: number for number, name in enumerate(name for group in names for name in group)}
    parameters = dict(model.named_parameters())
    targets: dict[str, Tensor] = {}
    for piece, (shape, kind) in facts.items():
        name, _, key = piece.rpartition("/")
        like, dtype = parameters[name], getattr(torch, str(kind).removeprefix("torch."))
        if list(like.shape) != list(shape) or not isinstance(dtype, torch.dtype):
            raise CheckpointError(f"{folder}: {key} of {name} is of shape {shape}, expected {list(like.shape)}.")
        if isinstance(like, DTensor):
            targets[piece] = empty_share(like, dtype, like.to_local().device)
        else:
            targets[piece] = torch.empty(shape, dtype=dtype, device=like.device)
        state.setdefault(numbers[name], {})[key] = targets[piece]
    together = any(isinstance(target, DTensor) for target in targets.values())
    with _quietly():
        load(targets, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=not together)


class _quietly(warnings.catch_warnings):
    """Without what torch says of its own internals."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.distributed")
        return entered
