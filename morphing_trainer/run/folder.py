"""The folder of a run: what is in it, and when it may be used."""

from __future__ import annotations

import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from morphing_trainer.errors import ConfigError

AUTO = "auto"
"""The value of `resume_from_checkpoint` that goes on with a run if there is one, and else begins it."""

JOURNAL = "journal.jsonl"
LOCK = ".lock"
MODEL = "model"
LOGS = "logs"
PLOT = "loss.png"
PLOTS = "plots"
STATS = "stats"
HISTORY = "history.jsonl"
"""In the folder of the statistics: the log lines."""
OVERALL = "overall.json"
"""In the folder of the statistics: those of the whole run."""
SETUP = "setup.json"
"""In the folder of the statistics: what the run was told, and what it runs on."""
EXAMPLES = "examples.jsonl"
"""In the folder of the statistics: the examples of its evaluations."""
WORK = "work.json"
"""In the folder of the statistics: what a token has cost, by phase."""
REPORT = "report.html"
REPORT_MARK = b'<meta name="generator" content="morphing-trainer report">'
"""Near the beginning of every report: by it one is known from other people's pages."""


def traces(folder: str | Path) -> list[str]:
    """Names of what an earlier run left in `folder`."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    own = {JOURNAL, MODEL, LOGS, PLOT, PLOTS, STATS, *([REPORT] if is_report(folder / REPORT) else [])}
    return sorted(path.name for path in folder.iterdir() if path.name in own or path.name.startswith("checkpoint-"))


def is_report(path: Path) -> bool:
    """Whether a file is a report that this library has written."""
    try:
        with path.open("rb") as file:
            return REPORT_MARK in file.read(2000)
    except OSError:
        return False


def is_run(folder: str | Path) -> bool:
    """Whether `folder` is the folder of a run."""
    return (Path(folder) / JOURNAL).is_file() or any(Path(folder).glob("checkpoint-*/morph_state.json"))


def check_output_dir(folder: str | Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds another run.

    Raises:
        ConfigError: if it does, and the run is neither resumed nor overwritten; or if it is not a folder.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir: {folder} is a file; give a folder.")
    if found := traces(folder):
        if not is_run(folder):
            raise ConfigError(
                f"output_dir: {folder} holds {', '.join(found[:4])}, which no run of this library has left there and "
                "which a run would overwrite; choose another folder by --output_dir."
            )
        if resume or overwrite:
            return
        raise ConfigError(
            f"output_dir: {folder} holds another run ({', '.join(found[:4])}{', ...' if len(found) > 4 else ''}). "
            "Go on with it by --resume_from_checkpoint true, choose another folder by --output_dir, or delete it by "
            "--overwrite_output_dir."
        )


def check_start(folder: str | Path, resume: str | bool | None, *, overwrite: bool) -> None:
    """`check_output_dir` for a value of `resume_from_checkpoint`.

    Under `AUTO`, what a run left that came to no checkpoint and no model gives way to a new one.

    Raises:
        ConfigError: see `check_output_dir`.
    """
    if resume != AUTO:
        check_output_dir(folder, resume=resume not in (None, False), overwrite=overwrite)
        return
    found = traces(folder)
    saved = any(name.startswith("checkpoint-") for name in found)
    check_output_dir(folder, resume=saved, overwrite=overwrite or MODEL not in found)


def locked(folder: str | Path) -> FileLock:
    """The lock of a run's folder, held by this process until it is released or the process ends, however that happens.

    Raises:
        ConfigError: if another process holds it.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    # A thread that still writes when the run is left may be the one that releases it.
    lock = FileLock(Path(folder) / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"output_dir: another process is training in {folder}. Wait for it to end, stop it, or choose another "
            "folder by --output_dir."
        ) from None
    return lock


def clear(folder: str | Path) -> None:
    """Delete what an earlier run left in `folder`, and nothing else.

    The journal goes last: were this cut short before, the rest could not be told from what is somebody else's.
    """
    for name in sorted(traces(folder), key=JOURNAL.__eq__):
        path = Path(folder) / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
