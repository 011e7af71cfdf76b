"""Which model of a run a person means to push: the one that it has saved at its end, or its newest checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from morphing_trainer.checkpoint import MANIFEST, latest_valid, verify
from morphing_trainer.errors import CheckpointError
from morphing_trainer.hub.parcel import CONFIG, WEIGHTS
from morphing_trainer.hub.told import setup_of
from morphing_trainer.run.folder import JOURNAL, MODEL, is_run
from morphing_trainer.run.salvage import check_run

_REQUIRED = (CONFIG, WEIGHTS, JOURNAL)


class Found(NamedTuple):
    """A model to push.

    Attributes:
        run: the folder of the run.
        folder: of the model.
        saved: the checkpoint that it is of; None for the one of the run's end.
        arguments: of the training, as the run was told.
    """

    run: Path
    folder: Path
    saved: Path | None
    arguments: dict[str, Any]

    @property
    def merged(self) -> bool:
        """Whether adapters are to be merged, of a checkpoint."""
        return bool(self.arguments.get("save_merged", True))

    @property
    def name(self) -> str:
        """The repository that the run was to be pushed to, or what the run is called."""
        return str(self.arguments.get("hub_model_id") or self.run.resolve().name)


def find(name: str) -> Found:
    """The model meant by a run's folder, or by one of its checkpoints.

    Raises:
        ConfigError: if it is neither.
        CheckpointError: if it has saved nothing, or all of it is damaged.
    """
    folder = Path(name).expanduser()
    if (folder / MANIFEST).is_file() and (folder / JOURNAL).is_file() and folder.name.startswith("checkpoint-"):
        verify(folder, _REQUIRED)
        return _found(folder.resolve().parent, folder, folder)
    if folder.name == MODEL and (folder / CONFIG).is_file() and is_run(folder.resolve().parent):
        return _found(folder.resolve().parent, folder, None)
    check_run(folder)
    model = folder / MODEL
    ended = (model / CONFIG).is_file()
    if ended and not _is_newer(_newest(folder), model):
        return _found(folder, model, None)
    saved = latest_valid(folder, _REQUIRED)
    if ended and not _is_newer(saved, model):  # newer ones are damaged
        return _found(folder, model, None)
    if saved is None:
        raise CheckpointError(
            f"{folder}: this run has saved no model and no checkpoint that is whole; let it go on to its first "
            "checkpoint, and push it then."
        )
    return _found(folder, saved, saved)


def _found(run: Path, folder: Path, saved: Path | None) -> Found:
    arguments = setup_of(run).get("arguments", {})
    training = arguments.get("training", {}) if isinstance(arguments, dict) else {}
    return Found(run, folder, saved, dict(training) if isinstance(training, dict) else {})


def _newest(run: Path) -> Path | None:
    saved = [path for path in run.glob("checkpoint-*") if (path / MANIFEST).is_file()]
    return max(saved, key=_time, default=None)


def _is_newer(saved: Path | None, model: Path) -> bool:
    return saved is not None and _time(saved) > _time(model)


def _time(folder: Path) -> float:
    """When its weights were written."""
    try:
        return max(path.stat().st_mtime for path in folder.glob("*.safetensors"))
    except (OSError, ValueError):
        return 0.0
