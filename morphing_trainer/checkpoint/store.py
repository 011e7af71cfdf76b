"""Checkpoint folders of a run: `<run>/checkpoint-<step>`. One is whole, or it has a name that is no checkpoint's.

Saving: `staging_folder` -> write the files -> `write_manifest` -> `publish`. In a run with several processes one of
them calls `sweep`, `publish` and `prune`. Everything that is not whole has a dot name:

    .morph-staging-<name>-<random>    being written
    .morph-replaced-<name>            the checkpoint that another of the same name is about to replace
    .morph-deleted-<name>-<random>    being deleted
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from morphing_trainer.checkpoint.manifest import MANIFEST, sync_folder, verify
from morphing_trainer.errors import CheckpointError

STAGING, REPLACED, DELETED = ".morph-staging-", ".morph-replaced-", ".morph-deleted-"
KEEP_AT_LEAST = 2

_CHECKPOINT = re.compile(r"checkpoint-(0|[1-9][0-9]{0,17})")
_log = logging.getLogger("morphing_trainer")


def staging_folder(run: Path, name: str) -> Path:
    """A fresh empty folder inside `run` (the same file system, so that `publish` is one rename) for files of `name`."""
    _check_name(name)
    new = [path for path in (run, *run.parents) if not path.exists()]
    run.mkdir(parents=True, exist_ok=True)
    for path in new:
        sync_folder(path.parent)
    # Not `tempfile.mkdtemp`: its folders are readable by their owner only, and this one becomes the checkpoint.
    staging = run / f"{STAGING}{name}-{secrets.token_hex(8)}"
    staging.mkdir()
    return staging


def publish(staging: Path, final: Path) -> None:
    """Make the folder `staging`, whose manifest is written, appear as `final` in one step, and durably.

    A `final` that exists is replaced. Between its rename and the new one's, a crash leaves it under a `REPLACED` name,
    from where `latest_valid` and `sweep` bring it back. Raises `OSError` if the file system fails; `final` is then the
    old one or the new one, whole.
    """
    _check_name(final.name)
    assert staging.parent == final.parent, "a rename is atomic within one folder only"
    if not (staging / MANIFEST).is_file():
        raise CheckpointError(f"{staging}: has no {MANIFEST}; write the manifest before publishing")
    if final.is_symlink() or (final.exists() and not final.is_dir()):
        raise CheckpointError(f"{final}: is in the way and is not a folder; move it away")
    replaced = final.with_name(REPLACED + final.name)
    if final.exists():
        if replaced.exists():  # of a crash after the new one was in place
            _discard(replaced)
        final.rename(replaced)
    try:
        staging.rename(final)
    except BaseException:
        _restore(replaced)
        raise
    sync_folder(final.parent)
    if replaced.exists():
        _discard(replaced)


def checkpoints(run: Path) -> list[Path]:
    """The folders `checkpoint-<step>` in `run`, newest step first. Links and other names are not checkpoints."""
    found = [path for path in _folders(run) if _CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=_step, reverse=True)


def latest_valid(
    run: Path, required: Collection[str] = (), check: Callable[[Path], None] = lambda folder: None
) -> Path | None:
    """The newest checkpoint that `verify` accepts; each newer one is logged as a warning that names its bad file.

    One that `check` raises `CheckpointError` for is passed over, too.

    None if there is none: if `checkpoints(run)` is not empty then, all are damaged and starting over would be silent.
    """
    for path in _folders(run):
        if path.name.startswith(REPLACED):
            _restore(path)
    for checkpoint in checkpoints(run):
        try:
            verify(checkpoint, required)
            check(checkpoint)
        except CheckpointError as error:
            _log.warning("checkpoint %s is damaged and is passed over: %s", checkpoint.name, error)
        else:
            return checkpoint
    return None


def prune(run: Path, keep: int, protect: Collection[Path] = ()) -> list[Path]:
    """Delete all checkpoints but the `keep` newest and those in `protect`. Returns the deleted ones.

    Protect the one just published: after a resume from an early step, later steps of before may still be there.
    Raises `CheckpointError` if `keep` is below 2. What the file system refuses to delete is logged as a warning.
    """
    if keep < KEEP_AT_LEAST:
        raise CheckpointError(
            f"{run}: cannot keep only {keep} of the checkpoints; keep at least {KEEP_AT_LEAST}, because the last one "
            "may turn out to be damaged"
        )
    protected = {path.name for path in protect}
    old = [path for path in checkpoints(run)[keep:] if path.name not in protected]
    _discard(*old)
    return [path for path in old if not path.exists()]


def drop_later(checkpoint: Path) -> list[Path]:
    """Delete the checkpoints of later steps beside `checkpoint`: the run has left the way that led to them."""
    later = [path for path in checkpoints(checkpoint.parent) if _step(path) > _step(checkpoint)]
    _discard(*later)
    return [path for path in later if not path.exists()]


def sweep(run: Path) -> list[Path]:
    """Remove what killed saves left in `run`, and bring back a checkpoint whose replacement never came.

    Returns the removed folders. For the start of a run: it would also take the staging folder of a save going on.
    """
    removed = []
    for path in _folders(run):
        if path.name.startswith(REPLACED) and _restore(path):
            continue
        if path.name.startswith((STAGING, REPLACED, DELETED)):
            _discard(path)
            removed.append(path)
    return [path for path in removed if not path.exists()]


def _discard(*folders: Path) -> None:
    """Delete folders of one parent. Each gets a `DELETED` name first, so that a half-deleted one is never seen.

    Nothing depends on the deletion, so a failure (files held open over NFS, say) is a warning, not the end of a run.
    """
    doomed = []
    for folder in folders:
        if folder.name.startswith(DELETED):
            doomed.append(folder)
            continue
        target = folder.with_name(f"{DELETED}{folder.name.lstrip('.')}-{secrets.token_hex(8)}")
        try:
            folder.rename(target)
            doomed.append(target)
        except OSError as error:
            _log.warning("%s could not be removed and takes up disk space: %s", folder, error)
    for target in doomed:
        try:
            sync_folder(target.parent)  # the new names are on the disk before any file goes
            shutil.rmtree(target)
        except OSError as error:
            _log.warning("%s could not be removed and takes up disk space: %s", target, error)


def _restore(replaced: Path) -> bool:
    """Give a `REPLACED` folder its name back unless that name is taken. Whether the name was free."""
    name = replaced.name.removeprefix(REPLACED)
    if not name or name.startswith("."):
        return False  # not one of ours
    final = replaced.with_name(name)
    if final.exists() or not replaced.exists():
        return False
    try:
        replaced.rename(final)
        sync_folder(final.parent)
    except OSError as error:
        if not final.exists():  # otherwise another process was faster
            _log.warning("%s could not be renamed back to %s: %s", replaced, final.name, error)
    return True


def _folders(run: Path) -> list[Path]:
    return [path for path in sorted(run.iterdir()) if path.is_dir() and not path.is_symlink()] if run.is_dir() else []


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _check_name(name: str) -> None:
    if not name or name.startswith(".") or Path(name).name != name:
        raise CheckpointError(f"{name!r} is not a folder name for a checkpoint; use one such as 'checkpoint-100'")
