"""What the tests of `offline` share: models on disk, and the live way to the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from morphing_trainer.engine import grow
from morphing_trainer.functional import parsed
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.lora import save_model
from morphing_trainer.models import load_model
from morphing_trainer.offline.applying import Applied, apply
from morphing_trainer.offline.source import open_source
from morphing_trainer.operations import ArchitectureOperation
from morphing_trainer.planning import operation_rng


def applied(folder: Path, out: Path, *written: Mapping[str, Any], check: bool = False, **options: Any) -> Applied:
    """`apply` of what would stand in a schedule."""
    return apply(open_source(str(folder)), [parsed(one) for one in written], out, check=check, **options)


def grown_live(folder: Path, out: Path, *written: Mapping[str, Any], seed: int = 0) -> PreTrainedModel:
    """The model in `folder`, loaded, morphed as a live one, and saved in `out`."""
    model: PreTrainedModel = load_model(str(folder), dtype="auto")
    for index, one in enumerate(written):
        operation = parsed(one)
        assert isinstance(operation, ArchitectureOperation)
        spec = ModelSpec.of(model)
        model = grow(operation, spec, model, {}, dict.fromkeys(spec.shapes, 0), operation_rng(seed, index)).model
    save_model(model, out, merge=False)
    return model


def contents(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of every safetensors file in a folder, as their library reads them."""
    return {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def assert_same_files(left: Path, right: Path) -> None:
    """The same files of tensors, with the same names, types and bits in them."""
    ours, theirs = contents(left), contents(right)
    assert ours.keys() == theirs.keys() and ours
    for name, tensors in ours.items():
        assert tensors.keys() == theirs[name].keys()
        for key, tensor in tensors.items():
            assert tensor.dtype == theirs[name][key].dtype, (name, key)
            assert torch.equal(tensor, theirs[name][key]), (name, key)
