"""What is to be pushed while training goes on: the files of a checkpoint, kept until they are sent.

They are linked, not copied, so that the run may delete the checkpoint meanwhile.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path

from morphing_trainer.hub.parcel import Content

PREFIX, MADE = ".morph-push-", ".morph-pack-"
"""Of folders beside a run's checkpoints: files that are kept, and files that are made for one push."""

_DAY = 24 * 3600.0


def keep(checkpoint: Path) -> Path:
    """A folder beside a checkpoint that holds its files for as long as they are needed.

    Raises:
        OSError: if the disk refuses.
    """
    kept = checkpoint.with_name(f"{PREFIX}{checkpoint.name}-{secrets.token_hex(4)}")
    try:
        shutil.copytree(checkpoint, kept, copy_function=_link)
    except BaseException:
        drop(kept)
        raise
    return kept


def drop(kept: Path) -> None:
    """Remove such a folder."""
    shutil.rmtree(kept, ignore_errors=True)


def sweep(run: Path) -> None:
    """Remove what killed processes have left; of what is made for a push, what no `morph push` still needs."""
    for left in run.glob(f"{PREFIX}*"):
        drop(left)
    for left in run.glob(f"{MADE}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _DAY:
                drop(left)


def whole(kept: Path, name: str) -> dict[str, Content]:
    """All files of a checkpoint, as the folder `name` of a repository."""
    files = (path for path in sorted(kept.rglob("*")) if path.is_file())
    return {f"{name}/{path.relative_to(kept).as_posix()}": path for path in files}


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
