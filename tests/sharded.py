"""FSDP2 on CPU processes, for tests: real sharding over gloo.

Accelerate chooses FSDP for accelerators only. `allow_on_cpu` makes it take the plugin on the CPU too, and nothing else:
`fully_shard`, its tensors and their communication are the real ones.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

ENVIRONMENT = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "GPT2Block",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}
"""What `accelerate launch` sets for FSDP2."""


def allow_on_cpu() -> None:
    """Let Accelerate shard on the CPU in this process. Call it before anything makes an `Accelerator`."""
    made = AcceleratorState.__init__
    if getattr(made, "shards_on_cpu", False):
        return

    @functools.wraps(made)
    def init(self: Any, *args: Any, **options: Any) -> None:
        plugin = options.get("fsdp_plugin")
        made(self, *args, **options)
        if plugin is not None:
            self.fsdp_plugin = plugin
        if getattr(self, "fsdp_plugin", None) is not None:
            self.distributed_type = DistributedType.FSDP

    init.shards_on_cpu = True  # type: ignore[attr-defined]
    AcceleratorState.__init__ = init


def sharded() -> None:
    """Make this process one of an FSDP2 run, as `accelerate launch` would."""
    os.environ.update(ENVIRONMENT)
    allow_on_cpu()
