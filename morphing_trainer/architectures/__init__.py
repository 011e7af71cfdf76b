"""The model families that can be morphed, each a table of named axes."""

from __future__ import annotations

from morphing_trainer.architectures.axes import ADAPTER, BASE, Adapter, Architecture, Axis, adapter_of, reads, writes
from morphing_trainer.architectures.gpt2 import GPT2

ARCHITECTURES: dict[str, Architecture] = {architecture.model_type: architecture for architecture in (GPT2,)}

__all__ = [
    "ADAPTER",
    "ARCHITECTURES",
    "BASE",
    "GPT2",
    "Adapter",
    "Architecture",
    "Axis",
    "adapter_of",
    "reads",
    "writes",
]
