"""Progress bars for long work on a terminal, and silence everywhere else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

LONG_CHARACTERS = 10_000_000
"""Text that takes a few seconds at least."""


@contextlib.contextmanager
def progress_bars(characters: float) -> Iterator[None]:
    """Let `datasets` show its progress within this block if there are so many `characters` that it takes long."""
    before = is_progress_bar_enabled()
    shown = characters > LONG_CHARACTERS and sys.stderr.isatty()
    if shown != before:
        (enable_progress_bar if shown else disable_progress_bar)()
    try:
        yield
    finally:
        if shown != before:
            (disable_progress_bar if shown else enable_progress_bar)()
