"""What a checkpoint of a run holds beside the Trainer's own files, and how a model is rebuilt from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from morphing_trainer.checkpoint import adapters, check_listed, verify
from morphing_trainer.checkpoint.ahead import Ahead
from morphing_trainer.checkpoint.tensors import read_tensors
from morphing_trainer.checkpoint.trainer_files import check_trainer_files
from morphing_trainer.engine import dressed
from morphing_trainer.errors import CheckpointError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.reading import read_json
from morphing_trainer.run.folder import JOURNAL
from morphing_trainer.run.journal import Event, read_journal, sound_lines
from morphing_trainer.run.shape import check_shape
from morphing_trainer.run.state import RunState

FORMAT = 2
MOST_PROCESSES = 100_000
STATE = "morph_state.json"
WEIGHTS = "model.safetensors"
REQUIRED = (STATE, JOURNAL, "config.json", WEIGHTS, "optimizer.pt", "scheduler.pt", "trainer_state.json")


@dataclass(frozen=True)
class Bundle:
    """A verified checkpoint, read.

    Attributes:
        path: its folder.
        state: the run's state as plain data (`RunState.from_dict` makes it live).
        arguments: the training arguments that matter for exactness, as they were.
        schedule: the entries of the schedule it ran under.
        stages: what the run knew of the stages of its plan (`TrainingStage.facts`).
        optimizer_names: parameter names of each param group, in the order of `optimizer.pt`.
        optimizer_groups: the param groups of `optimizer.pt`.
        events: its journal.
    """

    path: Path
    state: Mapping[str, Any]
    arguments: Mapping[str, Any]
    schedule: Sequence[Mapping[str, Any]]
    stages: Sequence[Mapping[str, Any]]
    optimizer_names: Sequence[Sequence[str]]
    optimizer_groups: Sequence[Mapping[str, Any]]
    events: Sequence[Event]

    @property
    def processes(self) -> int:
        """Number of processes that the run had."""
        return int(self.arguments["world_size"])


def bundle_files(
    state: RunState,
    *,
    arguments: Mapping[str, Any],
    schedule: Sequence[Mapping[str, Any]],
    stages: Sequence[Mapping[str, Any]],
    optimizer_names: Sequence[Sequence[str]],
    journal: Path,
) -> dict[str, bytes]:
    """The run's part of a checkpoint: name -> content of each file."""
    data = {
        "format": FORMAT,
        "state": state.to_dict(),
        "arguments": dict(arguments),
        "schedule": list(schedule),
        "stages": list(stages),
        "optimizer_names": [list(names) for names in optimizer_names],
    }
    return {STATE: (json.dumps(data, indent=1) + "\n").encode(), JOURNAL: sound_lines(journal)}


def read_bundle(path: Path, *, verified: bool = False, ahead: Ahead | None = None) -> Bundle:
    """Verify the checkpoint at `path`, every file of it, and read the run's part.

    Args:
        verified: every file that its manifest lists has been verified just now, and `REQUIRED` are among them.
        ahead: what is being read of it already.

    Raises:
        CheckpointError: if a file is missing or damaged.
    """
    if not path.is_dir():
        raise CheckpointError(
            f"resume_from_checkpoint: {path} does not exist; give a folder such as runs/a/checkpoint-100."
        )
    try:
        found = (path / STATE).exists() or (path / STATE).is_symlink()
    except OSError as error:
        raise CheckpointError(
            f"resume_from_checkpoint: {path} cannot be read ({error.strerror}); use another checkpoint."
        ) from error
    if not found:
        raise CheckpointError(
            f"resume_from_checkpoint: {path} was not saved by this library (it has no {STATE}). To start from its "
            "weights, give it as model_name_or_path."
        )
    if not verified:
        verify(path, REQUIRED)
    try:
        data = read_json(path / STATE)
        if data["format"] != FORMAT:
            raise CheckpointError(
                f"{path / STATE}: has format {data['format']}, this version reads {FORMAT}; use the one that saved it."
            )
        check_shape(data)
        parts = {name: data[name] for name in ("state", "arguments", "schedule", "stages", "optimizer_names")}
        events = read_journal(path / JOURNAL)
        saved, step = int(parts["arguments"]["world_size"]), parts["state"]["step"]
    except (OSError, KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path / STATE}: is not one that this library wrote ({error!r})") from error
    if not 1 <= saved <= MOST_PROCESSES:
        raise CheckpointError(f"{path / STATE}: names {saved} processes; use another checkpoint.")
    random_states = [f"rng_state_{rank}.pth" for rank in range(saved)] if saved > 1 else ["rng_state.pth"]
    check_listed(path, random_states)
    optimizer = ahead.optimizer() if ahead is not None and ahead.folder == path else None
    groups = check_trainer_files(path, random_states, step, optimizer)
    return Bundle(path=path, **parts, optimizer_groups=groups, events=events)


def load_model(
    path: Path,
    spec: ModelSpec,
    like: PreTrainedModel,
    device: torch.device,
    weights: Mapping[str, Tensor] | None = None,
) -> PreTrainedModel:
    """The model that a verified checkpoint holds, of description `spec`: every weight, in its shape, and no other.

    Args:
        weights: those of its file, if they have been read.

    Raises:
        CheckpointError: naming what is missing, too much or of another shape.
    """
    if weights is None:
        weights = read_tensors(path / WEIGHTS)
    shapes = {spec.name_before(name): shape for name, shape in spec.shapes.items() if not spec.adapter_at(name)}
    faults = [f"{name} is missing" for name in shapes if name not in weights]
    faults += [f"{name} is not part of the model" for name in weights if name not in shapes]
    faults += [
        f"{name} has shape {list(weights[name].shape)}, expected {list(shape)}"
        for name, shape in shapes.items()
        if name in weights and weights[name].shape != shape
    ]
    if faults:
        shown = "; ".join(faults[:3])
        raise CheckpointError(f"{path / WEIGHTS}: does not fit its description: {shown} ({len(faults)} in all).")
    found = {spec.name_now(name): weight for name, weight in weights.items()}
    if spec.sites:
        check_listed(path, (adapters.WEIGHTS, adapters.CONFIG))
        found |= adapters.read_adapters(path, spec)
    return dressed(spec, {name: found[name].to(device) for name in spec.shapes}, like=like)
