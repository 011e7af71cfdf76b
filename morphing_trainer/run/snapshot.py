"""What a checkpoint of a run holds, in memory, and how it becomes files: the ones that `Trainer` writes, and our own.

A snapshot is taken between two steps. With `copied=True` its tensors are the snapshot's own, in host memory, and it can
be written while training goes on; without, it must be written before the next step. The files are the same.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME, TRAINING_ARGS_NAME

from morphing_trainer.checkpoint import adapters
from morphing_trainer.config import MorphingConfig
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.run.references import References


@dataclass(frozen=True)
class Snapshot:
    """A run at the end of a step.

    Attributes:
        model: without adapters, holding the weights.
        spec: the description of the model that trains, adapters included.
        adapters: matrices of the adapters, by parameter name.
        optimizer, scheduler, scaler: state dicts. None is not written: a run that saves its model only, no scaler, an
            optimizer whose state every rank writes itself.
        random: state of the random generators of every rank; empty where the model only is saved.
        trainer: what `Trainer` knows of the run.
        arguments: of the run, as they are now.
        tokenizer: what is saved beside the model, if there is one.
        texts: small files of the run, ready to be written.
        references: what the analysis remembers of earlier weights.
        arrived: recorded after the copies from a CUDA device, which may still be on their way.
    """

    model: PreTrainedModel
    spec: ModelSpec
    adapters: Mapping[str, Tensor]
    optimizer: Mapping[str, Any] | None
    scheduler: Mapping[str, Any] | None
    scaler: Mapping[str, Any] | None
    random: Sequence[Mapping[str, Any]]
    trainer: TrainerState
    arguments: MorphingConfig
    tokenizer: Any
    texts: Mapping[str, bytes] = field(default_factory=dict)
    references: References | None = None
    arrived: torch.cuda.Event | None = None


def write(snapshot: Snapshot, folder: Path, home: Path) -> None:
    """Write all files of a snapshot into `folder`, which exists. No process group is used.

    Args:
        home: where the folder will stand.
    """
    if snapshot.arrived is not None:
        snapshot.arrived.synchronize()
    snapshot.model.save_pretrained(folder)
    if snapshot.tokenizer is not None:
        snapshot.tokenizer.save_pretrained(folder)
    torch.save(snapshot.arguments, folder / TRAINING_ARGS_NAME)
    if snapshot.spec.sites:
        adapters.write_adapters(folder, snapshot.spec, snapshot.adapters, home)
    optimizer, scheduler, scaler = snapshot.optimizer, snapshot.scheduler, snapshot.scaler
    for name, state in ((OPTIMIZER_NAME, optimizer), (SCHEDULER_NAME, scheduler), (SCALER_NAME, scaler)):
        if state is not None:
            torch.save(state, folder / name)
    for rank, numbers in enumerate(snapshot.random):
        torch.save(numbers, folder / ("rng_state.pth" if len(snapshot.random) == 1 else f"rng_state_{rank}.pth"))
    snapshot.trainer.save_to_json(str(folder / TRAINER_STATE_NAME))
    for name, text in snapshot.texts.items():
        (folder / name).write_bytes(text)
    if snapshot.references is not None:
        snapshot.references.save(folder)


class Copier:
    """Copies tensors to host memory. From a CUDA device they go through pinned memory, and nobody waits for them."""

    def __init__(self) -> None:
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}
        """Original and copy: an original that were gone might leave its id to another tensor."""
        self._on_device = False

    def tensor(self, tensor: Tensor) -> Tensor:
        """A copy, of the same type, shape and strides; the same one for the same tensor."""
        if id(tensor) not in self._copies:
            source = tensor.detach()
            if source.device.type == "cuda":
                self._on_device = True
                copy = torch.empty_like(source, device="cpu", pin_memory=True).copy_(source, non_blocking=True)
            else:
                copy = source.to("cpu", copy=True)
            self._copies[id(tensor)] = tensor, copy
        return self._copies[id(tensor)][1]

    def tree(self, value: Any) -> Any:
        """A copy of dictionaries, lists and tuples down to their tensors; other leaves are taken as they are."""
        match value:
            case Tensor():
                return self.tensor(value)
            case Mapping():
                return type(value)((key, self.tree(item)) for key, item in value.items())  # type: ignore[call-arg]
            case list():
                return [self.tree(item) for item in value]
            case tuple() if type(value) is tuple and any(isinstance(item, Tensor | Mapping | list) for item in value):
                return tuple(self.tree(item) for item in value)
        return value

    def recorded(self) -> torch.cuda.Event | None:
        """What to wait for before the copies are read; later work on the device comes after them by itself."""
        if not self._on_device:
            return None
        event = torch.cuda.Event()
        event.record()
        return event


def random_states(*, distributed: bool) -> dict[str, Any]:
    """The state of this process's random generators, as `Trainer._load_rng_state` takes it.

    Args:
        distributed: the run was launched as several processes, or as one of them; all devices that a process sees are
            noted then.
    """
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.random.get_rng_state(),
    }
    for kind in ("cuda", "npu", "hpu", "mlu", "musa"):
        device = getattr(torch, kind, None)
        if device is not None and device.is_available():
            source = getattr(device, "random", device)
            states[kind] = source.get_rng_state_all() if distributed else source.get_rng_state()
    return states
