"""Tensors of which every process keeps some rows (FSDP2), and what they are as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from morphing_trainer.errors import ConfigError


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has divided the parameters of a model among processes."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def reshard(model: nn.Module) -> None:
    """Let every process keep its own rows only. FSDP2 leaves some parameters whole after an evaluation.

    Ask for the parameters after this: the whole ones lose their memory.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def own_rows(tensor: DTensor) -> range:
    """The rows of a sharded tensor that this process keeps, none for some if there are more processes than rows.

    Raises:
        ConfigError: if it is divided in another way than by rows.
    """
    if any(not isinstance(place, Replicate) and place != Shard(0) for place in tensor.placements):
        raise ConfigError(
            f"sharding: a parameter is divided as {tensor.placements}; models that FSDP2 divides by rows can be "
            "morphed. Leave out tensor and context parallelism."
        )
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return range(offset[0], offset[0] + shape[0])


def as_shard(local: Tensor, like: DTensor) -> DTensor:
    """The tensor of which this process keeps `local`, divided as `like` is.

    Args:
        local: (own rows, ...).
        like: of the whole shape; its values do not matter.
    """
    return DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def share_of(full: Tensor, like: DTensor) -> DTensor:
    """This process's rows of a whole tensor, as a shard; the whole one need not stay."""
    rows = own_rows(like)
    return as_shard(full[rows.start : rows.stop].clone(), like)


def local_part(tensor: Tensor) -> Tensor:
    """What this process keeps of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. For a sharded one all processes must ask at the same time."""
    if not isinstance(tensor, DTensor):
        return tensor
    local = tensor.to_local()
    device = tensor.device_mesh.device_type
    if local.device.type != device:  # offloaded; the processes meet on their devices
        tensor = as_shard(local.to(device), tensor)
    return tensor.full_tensor()


def first_ones(tensor: Tensor) -> Tensor:
    """The tensor of the first process, on all; of one shape on all, which ask at the same time."""
    tensor = tensor.contiguous()
    dist.broadcast(tensor, src=0)
    return tensor


def gathered(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Those of `tensors` as a whole, on every process, detached."""
    return {name: whole(tensors[name].detach()) for name in names}


def collected(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """All of `tensors` as a whole in the main memory of the processes that keep them, one after the other.

    Beside what is kept, no more than one whole tensor exists at a time.

    Args:
        keep: whether this process does. All take part.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if keep:
            found[name] = full.cpu() if isinstance(tensor, DTensor) else full
        del full
    return found


def empty_share(like: DTensor, dtype: torch.dtype, device: torch.device) -> DTensor:
    """An uninitialised shard, divided as `like` is."""
    return as_shard(torch.empty((len(own_rows(like)), *like.shape[1:]), dtype=dtype, device=device), like)
