"""Where a run stands, as a small file that it replaces as it logs: `stats/progress.json`, for `morph status`.

It says what the log lines do not: how long the run is, what the model looks like now, what comes next and why it waits.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphing_trainer.reading import read_json
from morphing_trainer.run.history import plain

if TYPE_CHECKING:  # whoever only reads the file does not wait for torch
    from morphing_trainer.run.session import Session

PROGRESS = "progress.json"
"""In the folder of the statistics."""


def progress(session: Session, length: float | None) -> dict[str, Any]:
    """The file's content as of now.

    `end`: optimizer step at which the run ends, as far as is known; `model`: its shape and size; `next`: the next
    operation, `value`, its condition (`trigger`) and how far that is (`progress`), None behind the last one.

    Args:
        length: tokens of a sample, on average; None if there were none.
    """
    state, upcoming = session.state, session.upcoming()
    entry = state.position.upcoming(session.schedule)
    coming = None
    if upcoming is not None and entry is not None:
        trigger = {"trigger": entry.described(), "progress": upcoming.progress}
        coming = {"operation": upcoming.operation, "value": upcoming.value, **trigger}
    return {
        "step": state.step,
        "end": state.end,
        "epoch": session.epochs,
        "tokens": state.tokens,
        "seconds": session.seconds(),
        "length": length,
        "stage": state.stage_name,
        "stages": session.course.names,
        "operations": state.position.done,
        "model": state.spec.facts(),
        "settings": state.settings.to_dict(),
        "next": coming,
    }


def write_progress(path: Path, content: dict[str, Any]) -> None:
    """Replace the file in one go. It is not synced: a run does not wait for the disk over what a resume writes anew."""
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(json.dumps(plain(content)) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def read_progress(path: Path) -> dict[str, Any]:
    """The file's content; empty if there is none, as of a run of before there was such a file.

    Raises:
        ValueError: if it is not one that a run writes.
        OSError: if it cannot be read.
    """
    if not path.exists():
        return {}
    data = read_json(path)
    if not isinstance(data, dict):
        raise ValueError("is not what a run writes there")
    return data
