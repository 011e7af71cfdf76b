"""What a new run takes the place of, in words, before it is deleted."""

from __future__ import annotations

import logging
from pathlib import Path

from morphing_trainer.run.folder import traces
from morphing_trainer.run.looking import standing_of
from morphing_trainer.run.salvage import salvaged
from morphing_trainer.run.standing import EMPTY, FAILED, FINISHED, INTERRUPTED, KILLED

_WORDS = {
    FINISHED: "had finished at",
    INTERRUPTED: "had stopped at",
    FAILED: "had failed at",
    KILLED: "had been killed after",
}


def replaced(folder: Path, *, overwrite: bool) -> tuple[int, str] | None:
    """The level at which it is told, a warning if the run was not finished, and the line; None for an empty folder.

    Never raises: a folder that cannot be read is replaced all the same. Nobody trains in it.

    Args:
        overwrite: this is what `overwrite_output_dir` asks for.
    """
    level, was = logging.WARNING, "another run"
    try:
        if not traces(folder):
            return None
        found = standing_of(folder, salvaged(folder), None)
        if found.state == EMPTY:
            was = "a run that had not begun"
        else:
            step = found.step if found.ended is None else int(found.ended["step"])
            end = f" of {found.end:,}" if found.end else ""
            was = f"a run that {_WORDS[found.state]} step {step:,}{end}"
        level = logging.INFO if found.state == FINISHED else logging.WARNING
    except Exception:  # of any kind: whatever is wrong with it, it goes
        was = "another run, which cannot be read"
    return level, f"{folder} held {was}; it is replaced{' (overwrite_output_dir)' if overwrite else ''}"
