"""Change a model's architecture and hyper-parameters while it trains.

The public names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from morphing_trainer.callback import MorphCallback
    from morphing_trainer.config import MorphingConfig
    from morphing_trainer.errors import MorphError
    from morphing_trainer.extending import register
    from morphing_trainer.functional import Morphed, morph
    from morphing_trainer.lora import add_adapters, save_model, without_adapters
    from morphing_trainer.lora_arguments import LoraArguments
    from morphing_trainer.schedule import Schedule
    from morphing_trainer.trainer import MorphingTrainer

__version__ = "0.1.0"

_HOME = {
    "LoraArguments": "lora_arguments",
    "MorphCallback": "callback",
    "MorphError": "errors",
    "Morphed": "functional",
    "MorphingConfig": "config",
    "MorphingTrainer": "trainer",
    "Schedule": "schedule",
    "add_adapters": "lora",
    "morph": "functional",
    "register": "extending",
    "save_model": "lora",
    "without_adapters": "lora",
}

__all__ = [
    "LoraArguments",
    "MorphCallback",
    "MorphError",
    "Morphed",
    "MorphingConfig",
    "MorphingTrainer",
    "Schedule",
    "__version__",
    "add_adapters",
    "morph",
    "register",
    "save_model",
    "without_adapters",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
