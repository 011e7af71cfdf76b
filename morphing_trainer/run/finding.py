"""Which model a person means: a run, a checkpoint, a folder with a model, or one on the Hub."""

from __future__ import annotations

import difflib
from pathlib import Path

from morphing_trainer.checkpoint import latest_valid, verify
from morphing_trainer.checkpoint.store import checkpoints
from morphing_trainer.data.hub import looks_local
from morphing_trainer.errors import CheckpointError, ModelError
from morphing_trainer.run.bundle import REQUIRED, STATE
from morphing_trainer.run.folder import MODEL, is_run

_CONFIG = "config.json"


def find_model(name: str) -> str:
    """The folder that holds the model meant by `name`, or `name` itself if it may be a Hub id.

    Of a run: the model that it has saved at its end, else its newest checkpoint that is not damaged.

    Raises:
        CheckpointError: if the checkpoint is damaged, or all of the run's are, or the run has saved nothing yet.
        ModelError: if there is no such run or folder.
    """
    folder = Path(name).expanduser()
    if not name or not folder.is_dir():
        siblings = _models_in(folder.parent)
        if not name or looks_local(name) or siblings:
            near = difflib.get_close_matches(folder.name, [path.name for path in siblings], n=1)
            hint = f"did you mean {str(folder.with_name(near[0]))!r}?" if near else "check the path"
            raise ModelError(f"{name!r}: there is no such run, checkpoint or model; {hint}")
        return name
    if (folder / _CONFIG).is_file():
        if (folder / STATE).is_file():
            verify(folder, REQUIRED)
        return str(folder)
    if (folder / MODEL / _CONFIG).is_file():
        return str(folder / MODEL)
    if found := latest_valid(folder, REQUIRED):
        return str(found)
    if damaged := checkpoints(folder):
        names = ", ".join(path.name for path in damaged)
        raise CheckpointError(f"{name}: all checkpoints of this run are damaged ({names}); use another run")
    if is_run(folder):
        raise CheckpointError(
            f"{name}: this run has saved no checkpoint and no model yet; wait for its first checkpoint"
        )
    raise ModelError(f"{name}: holds no run, checkpoint or model (no {_CONFIG} in it); check the path")


def _models_in(folder: Path) -> list[Path]:
    """Runs, checkpoints and models that lie in `folder`."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_dir() and (is_run(path) or (path / _CONFIG).is_file())]
