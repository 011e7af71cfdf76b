"""The state from before a guarded operation, as a checkpoint: whole, and where the run can go back to it."""

from __future__ import annotations

import shutil
from pathlib import Path

from morphing_trainer.checkpoint import verify
from morphing_trainer.errors import CheckpointError
from morphing_trainer.run.bundle import REQUIRED, Bundle
from morphing_trainer.run.guard import Guard
from morphing_trainer.run.state import RunState


def check_guard(bundle: Bundle, state: RunState, run: Path, *, afresh: bool) -> None:
    """See to it that a run whose guard is open has the state from before the operation at hand.

    Args:
        run: folder of the run.
        afresh: the checkpoint's optimizer is left behind.

    Raises:
        CheckpointError: if it has not.
    """
    guard = state.guard
    if guard is None:
        return
    place = f"resume from {bundle.path}: {guard.operation} of step {guard.step} is guarded to step {guard.deadline}"
    if afresh:
        raise CheckpointError(
            f"{place}, and the run could not go back with another optimizer; leave out ignore_optimizer, or resume "
            f"from {guard.checkpoint} or from a checkpoint behind step {guard.deadline}."
        )
    check_base(bundle.path, guard, run)


def check_base(path: Path, guard: Guard, run: Path) -> None:
    """See to it that the state which an open guard may lead back to is whole.

    Args:
        path: of the checkpoint in which the guard is open.
        run: folder of the run.

    Raises:
        CheckpointError: if it is not.
    """
    place = f"resume from {path}: {guard.operation} of step {guard.step} is guarded to step {guard.deadline}"
    folder = next((each for each in (run / guard.checkpoint, path.parent / guard.checkpoint) if each.is_dir()), None)
    if folder is None:
        what = f"but {guard.checkpoint}, which it may go back to, is gone"
        raise CheckpointError(f"{place}, {what}; resume from an earlier checkpoint.")
    try:
        verify(folder, REQUIRED)
    except CheckpointError as error:
        what = f"but what it may go back to is damaged ({error})"
        raise CheckpointError(f"{place}, {what}; resume from an earlier checkpoint.") from error


def check_open_guard(bundle: Bundle) -> None:
    """`check_base` for a checkpoint that has been verified, if a guard is open in it."""
    guard = bundle.state.get("guard")
    if guard is not None:
        check_base(bundle.path, Guard.from_dict(guard), bundle.path.parent)


def bring(guard: Guard, there: Path, run: Path) -> None:
    """Copy what an open guard may lead back to into `run`, which goes on with a run of another folder.

    Args:
        there: the other folder.

    Raises:
        OSError: if it cannot be copied.
    """
    for name in guard.kept:
        if (there / name).is_dir() and not (run / name).is_dir():
            copied = run / f".{name}-brought"
            shutil.rmtree(copied, ignore_errors=True)  # of a start that was cut short
            shutil.copytree(there / name, copied)
            copied.rename(run / name)
