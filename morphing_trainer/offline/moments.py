"""The optimizer of a checkpoint, moved along the lineages of operations.

What is written is what `Optimizer.state_dict` gives of an optimizer over named parameters: `param_names` says in each
group which parameters its numbers stand for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from morphing_trainer.checkpoint.torch_files import read_torch_file
from morphing_trainer.checkpoint.trainer_files import OPTIMIZER
from morphing_trainer.engine import inherit_groups
from morphing_trainer.errors import CheckpointError
from morphing_trainer.lineage import Census, ModelSpec, transplant_states
from morphing_trainer.operations import Morph
from morphing_trainer.run.bundle import Bundle
from morphing_trainer.sharding.files import is_divided


@dataclass(frozen=True)
class Memory:
    """What an optimizer remembers.

    Attributes:
        states: parameter name -> its state.
        groups: parameter name -> its param group, for all parameters of the model.
        options: the settings of each param group.
    """

    states: Mapping[str, Mapping[str, Any]]
    groups: Mapping[str, int]
    options: Sequence[Mapping[str, Any]]


def read_memory(bundle: Bundle, spec: ModelSpec) -> Memory:
    """The optimizer of a checkpoint whose files have been verified; its tensors are mapped, not read.

    Raises:
        CheckpointError: if it lies in parts, or does not fit the checkpoint's model.
    """
    path = bundle.path / OPTIMIZER
    saved = read_torch_file(path)
    if is_divided(saved):
        raise CheckpointError(
            f"{path}: was saved by processes that each kept a part (FSDP2). Resume the run in one process, save a "
            "checkpoint and give that; or leave --optimizer out."
        )
    names = [name for group in bundle.optimizer_names for name in group]
    groups, sizes = bundle.state["groups"], [len(group["params"]) for group in saved["param_groups"]]
    if sizes != [len(group) for group in bundle.optimizer_names] or groups.keys() != spec.shapes.keys():
        raise CheckpointError(f"{path}: has other parameters than the checkpoint's model; use another checkpoint.")
    for number, state in saved["state"].items():
        for value in state.values():
            name = names[number] if isinstance(number, int) and 0 <= number < len(names) else None
            shape = None if name is None else spec.shapes.get(name)
            if shape is None or (isinstance(value, torch.Tensor) and value.ndim and value.shape != shape):
                raise CheckpointError(f"{path}: the state of {name or number!r} does not fit the model; use another.")
    options = [
        {key: value for key, value in group.items() if key not in ("params", "param_names")}
        for group in saved["param_groups"]
    ]
    return Memory({names[number]: state for number, state in saved["state"].items()}, groups, options)


def moved(memory: Memory, morph: Morph) -> tuple[Memory, Census]:
    """The optimizer after an operation, and what became of its moments.

    Raises:
        OperationError: if a tensor changes whose optimizer state has no rule.
    """
    spec = morph.spec
    sizes = {name: shape.numel() for name, shape in spec.shapes.items()}
    states, census = transplant_states(morph.lineage, memory.states, sizes, spec.untrained)
    return Memory(states, inherit_groups(morph.lineage, memory.groups), memory.options), census


def write_memory(path: Path, memory: Memory, spec: ModelSpec) -> None:
    """Write the optimizer as `torch.save` does.

    Raises:
        OSError, RuntimeError: if the disk refuses.
    """
    param_groups: list[dict[str, Any]] = []
    numbers: dict[str, int] = {}
    for index, options in enumerate(memory.options):
        names = [name for name in spec.shapes if name not in spec.untrained and memory.groups[name] == index]
        numbers |= {name: len(numbers) + place for place, name in enumerate(names)}
        param_groups.append({**options, "params": [numbers[name] for name in names], "param_names": names})
    state = {number: dict(memory.states[name]) for name, number in numbers.items() if name in memory.states}
    with path.open("xb") as file:
        torch.save({"state": state, "param_groups": param_groups}, file)
        file.flush()
        os.fsync(file.fileno())
