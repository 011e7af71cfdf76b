"""The folder that a result appears in: whole, in one step, or not at all."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from morphing_trainer.checkpoint.manifest import write_manifest
from morphing_trainer.checkpoint.storage import refusal
from morphing_trainer.checkpoint.store import REPLACED, STAGING, publish, staging_folder
from morphing_trainer.errors import ConfigError, MorphError, StorageError
from morphing_trainer.reading import path_fault
from morphing_trainer.run.bundle import STATE
from morphing_trainer.run.folder import is_run

if sys.platform != "win32":
    import fcntl


def check_place(out: Path, source: Path | None, *, overwrite: bool) -> None:
    """Refuse a folder that a result must not take the place of.

    Args:
        source: the folder that the model comes from, if it is known by now.

    Raises:
        ConfigError: saying which one to give.
    """
    if fault := path_fault(str(out)):
        raise ConfigError(f"--out: {str(out)[:200]!r} {fault}.")
    if out.name in ("", "..") or out.name.startswith("."):
        raise ConfigError(f"--out: {str(out)!r} must be a new folder with a name of its own, such as models/grown.")
    if source is not None and (out.resolve() == source.resolve() or out.resolve() in source.resolve().parents):
        raise ConfigError(f"--out: {out} is where the model comes from; give another folder.")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ConfigError(f"--out: {out} is a file or a link; give another folder.")
    if not out.exists():
        return
    if not overwrite:
        raise ConfigError(f"--out: {out} exists; give another folder, or --overwrite to have a model there replaced.")
    is_model = (out / "config.json").is_file() and all(path.is_file() for path in out.iterdir())
    if not is_model or is_run(out) or (out / STATE).exists():
        raise ConfigError(f"--out: {out} holds something else than a model, and is not overwritten; give another.")


def check_room(out: Path, needed: int) -> None:
    """Raises StorageError if there are not so many bytes left on the disk of `out`."""
    parent = next(path for path in out.absolute().parents if path.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise StorageError(
            f"--out: {out} will take {needed / 1e9:,.2f} GB, and {free / 1e9:,.2f} GB are free; make room, or give a "
            "folder on another disk."
        )


@contextmanager
def appearing(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A hidden folder beside `out` to write into; it becomes `out` at the end, and is removed if that is not reached.

    What a killed process has left of such a folder is removed first.

    Raises:
        ConfigError: if somebody has made `out` meanwhile.
        StorageError: if the disk refuses.
    """
    try:
        _tidy(out)
        staging = staging_folder(out.parent, out.name)
        held = _hold(staging)
        try:
            yield staging
            write_manifest(staging)
            check_place(out, None, overwrite=overwrite)
            publish(staging, out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)  # nothing, once it has become `out`
            if held is not None:
                os.close(held)
    except MorphError:
        raise
    except Exception as error:
        reason = refusal(error)
        if reason is None:
            raise
        raise StorageError(f"--out: {out} could not be written ({reason}); nothing is left of it.") from error


def _tidy(out: Path) -> None:
    """Bring `out` back if it was moved away for one that never came, and remove what nobody writes to any more."""
    replaced = out.with_name(REPLACED + out.name)
    if replaced.is_dir() and not out.exists():
        replaced.rename(out)
    for left in out.parent.iterdir() if out.parent.is_dir() else ():
        held = _hold(left) if left.name.startswith(f"{STAGING}{out.name}-") else None
        if held is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(held)


def _hold(folder: Path) -> int | None:
    """A mark on a folder that lasts as long as this process; None if another has it, or the system has no such marks.

    It is in memory only, so a killed process leaves none.
    """
    if sys.platform == "win32":
        return None
    with suppress(OSError):
        held = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(held)
            return None
        return held
    return None
