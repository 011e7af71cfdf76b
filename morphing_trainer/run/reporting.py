"""Writing the report of a run: a page that replaces none but its like."""

from __future__ import annotations

import os
from pathlib import Path

from morphing_trainer.errors import ConfigError, StorageError
from morphing_trainer.run.folder import REPORT, is_report


def write_report(folder: Path, target: Path | None = None, *, over: bool = False) -> Path:
    """Write the page about the run in `folder`, and say where.

    Args:
        target: file to write; default: `report.html` in the run's folder.
        over: see `run.telling.story`.

    Raises:
        ConfigError: if `folder` is no run, or what stands in the way is no report of this library.
        StorageError: if the file cannot be written.
    """
    # Imported here: the template's engine is for those who write a report.
    from morphing_trainer.reporting.report.page import page
    from morphing_trainer.run.telling import story

    target = folder / REPORT if target is None else target
    told = story(folder, over=over)
    check_target(target)
    unfinished = target.with_name(f".{target.name}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(page(told).encode())
        os.replace(unfinished, target)
    except OSError as error:
        raise StorageError(
            f"{target}: the report cannot be written ({error.strerror or error}); make room, or name another file by "
            "--output."
        ) from error
    return target


def check_target(target: Path) -> None:
    """Raises ConfigError where the report would take the place of something else."""
    if target.is_dir():
        raise ConfigError(f"--output: {target} is a folder; give the name of a file, such as {target / REPORT}.")
    if os.path.lexists(target) and not is_report(target):
        raise ConfigError(
            f"--output: {target} exists and is no report that this library has written; name another file."
        )
