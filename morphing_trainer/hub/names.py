"""Whether a name that somebody gave for a model or a data set is one of the Hub's, or a place on a disk."""

from __future__ import annotations

import re
from pathlib import Path

from morphing_trainer.data.hub import looks_local

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


def is_of_hub(name: str, run: Path) -> bool:
    """Whether `name`, which the run in the folder `run` was given, is one of the Hub's.

    A relative path may look like one. It is told by its folder, which is sought from here and from above the run: most
    commands are given there.
    """
    if not _NAME.fullmatch(name) or looks_local(name):
        return False
    return not any((parent / name).exists() for parent in run.absolute().parents)
