"""Leaving the process groups that FSDP2 keeps: gloo closes a connection with the last reference to its group only."""

from __future__ import annotations

import gc

from torch import nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule


def leave_groups(model: nn.Module) -> None:
    """Drop what FSDP2 holds of process groups in this process; nothing sharded can be computed afterwards.

    The model itself may stay alive, in the hands of whoever has made it.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            for group in module._get_fsdp_state()._fsdp_param_groups:
                for info in (group.mesh_info, group.post_forward_mesh_info):
                    held = (
                        [name for name, value in vars(info).items() if isinstance(value, ProcessGroup)] if info else []
                    )
                    for name in held:
                        setattr(info, name, None)
    # Also of models that have been replaced: what DTensor remembers of its operations keeps their meshes.
    # By type: `isinstance` asks objects for their class, and some warn.
    for mesh in [each for each in gc.get_objects() if issubclass(type(each), DeviceMesh)]:
        mesh._pg_registry.clear()
