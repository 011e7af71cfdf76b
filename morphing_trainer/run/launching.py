"""How a run was launched: what cannot be morphed is refused when the arguments are read, before a model is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from morphing_trainer.errors import ConfigError

FSDP2 = "accelerate launch --config_file accelerate_configs/fsdp2.yaml train.py ..."


def check_launched(deepspeed: Any, fsdp: Any, fsdp_config: Any, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse DeepSpeed and the first version of FSDP, asked for by arguments or by the launcher.

    Args:
        deepspeed, fsdp, fsdp_config: the training arguments of these names.
        environment: where `accelerate launch` leaves what its config file says.

    Raises:
        ConfigError: naming what can be used instead.
    """
    if deepspeed:
        raise ConfigError(f"deepspeed: {_NO_DEEPSPEED}")
    if environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("true", "1"):
        raise ConfigError(f"accelerate's distributed_type DEEPSPEED: {_NO_DEEPSPEED}")
    versions = [
        environment.get("FSDP_VERSION") if environment.get("ACCELERATE_USE_FSDP", "").lower() == "true" else None
    ]
    if fsdp and isinstance(fsdp_config, Mapping):
        versions += [fsdp_config.get(name) for name in ("version", "fsdp_version")]
    if any(str(version) == "1" for version in versions):
        raise ConfigError(
            "fsdp_version: version 1 is not supported, because it flattens parameters; set fsdp_version: 2, as "
            f"accelerate_configs/fsdp2.yaml does ({FSDP2})."
        )
    if fsdp and "WORLD_SIZE" not in environment:
        raise ConfigError(f"fsdp: one process has nobody to divide the model with; launch several: {FSDP2}")


def check_joined(world_size: int, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse processes that were launched together and do not find each other, before all train in one folder.

    Args:
        world_size: processes that train together.

    Raises:
        ConfigError: saying what to add.
    """
    launched = environment.get("WORLD_SIZE", "")
    if launched.isdigit() and int(launched) > 1 == world_size:
        raise ConfigError(
            f"{launched} processes were launched, and each takes itself for the only one, because there is no "
            "accelerator to train on: add --use_cpu, or launch one process."
        )


_NO_DEEPSPEED = f"DeepSpeed is not supported. To divide model and optimizer among devices use FSDP2: {FSDP2}"
