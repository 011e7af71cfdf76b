"""Reading what a run has left behind, to draw it: log lines, operations, stages and times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from morphing_trainer.errors import ConfigError, MorphError, suggest
from morphing_trainer.reading import read_json
from morphing_trainer.reporting.run_data import Lines, RunData, is_number
from morphing_trainer.run import journal
from morphing_trainer.run.folder import HISTORY, JOURNAL, OVERALL, STATS, is_run
from morphing_trainer.run.history import read_history


def read_runs(folders: Sequence[str]) -> list[RunData]:
    """Several runs, with names that tell them apart.

    Raises:
        ConfigError: if one is not the folder of a run, is named twice, or has logged nothing.
        CheckpointError: if its journal is damaged.
    """
    return [read_run(path, name) for path, name in named(folders)]


def named(folders: Sequence[str]) -> list[tuple[Path, str]]:
    """Folders, and names that tell them apart: as much of the ends of their paths as that takes.

    Raises:
        ConfigError: if one is named twice.
    """
    paths = [Path(folder) for folder in folders]
    resolved = [path.resolve() for path in paths]
    for i, path in enumerate(resolved):
        if path in resolved[:i]:
            raise ConfigError(f"{paths[i]}: is named twice; name each run once.")
    parts = 1
    while len({path.parts[-parts:] for path in resolved}) < len(resolved):
        parts += 1
    return [(path, "/".join(full.parts[-parts:])) for path, full in zip(paths, resolved, strict=True)]


def read_run(folder: Path, name: str | None = None) -> RunData:
    """One run, finished or not.

    Raises:
        ConfigError: if `folder` is not the folder of a run, or nothing has been logged.
        CheckpointError: if its journal is damaged.
    """
    check_folder(folder)
    try:
        return _read(folder, name)
    except MorphError:
        raise
    except (OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        what = f"its files are not those that a run writes ({type(error).__name__}: {str(error)[:200]})"
        raise ConfigError(f"{folder}: {what}; restore them.") from error


def check_folder(folder: Path) -> None:
    """Raises ConfigError if there is no such folder, with the name of the run beside it that may be meant."""
    if folder.is_dir():
        return
    if folder.exists():
        raise ConfigError(f"{folder}: is a file; give the folder of a run, such as runs/demo.")
    beside = [path.name for path in folder.parent.glob("*/") if is_run(path)] if folder.parent.is_dir() else []
    hint = suggest(folder.name, beside) or "; give the folder of a run, such as runs/demo"
    raise ConfigError(f"{folder}: there is no such folder{hint}")


def _read(folder: Path, name: str | None) -> RunData:
    lines = _lines(folder)
    path = folder / JOURNAL
    if lines is None and not path.is_file():
        raise ConfigError(
            f"{folder}: is not the folder of a run: neither {JOURNAL} nor a checkpoint is in it. Give an output_dir."
        )
    if not lines:
        raise ConfigError(f"{folder}: this run has not logged anything yet; wait for its first logging_steps.")
    events = journal.effective(journal.read_journal(path)) if path.is_file() else []
    overall = overall_of(folder)
    times = {part: entry["seconds"] for part, entry in overall.get("timing", {}).items()}
    timing = {part: seconds for part, seconds in times.items() if is_number(seconds)}
    stages = stages_of(lines, overall.get("stages", {}))
    return RunData(name or folder.resolve().name, lines, tuple(journal.records(events)), stages, timing)


def _lines(folder: Path) -> list[dict[str, Any]] | None:
    """The log lines as they were written while training, else those of the newest checkpoint; None without either."""
    if (folder / STATS / HISTORY).is_file():
        return rewound(read_history(folder / STATS / HISTORY))
    found = [path for path in folder.glob("checkpoint-*/trainer_state.json") if path.parent.name[11:].isdigit()]
    found.sort(key=lambda path: int(path.parent.name[11:]))
    for path in [*([folder / "trainer_state.json"] if (folder / "trainer_state.json").is_file() else []), *found[::-1]]:
        try:
            lines = read_json(path)["log_history"]
            return rewound([line for line in lines if isinstance(line, dict)])
        except (OSError, ValueError, KeyError, TypeError):  # damaged: the one before
            continue
    return None


def rewound(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where a run went back to an earlier checkpoint, what it had done beyond it is dropped."""
    kept: list[dict[str, Any]] = []
    for line in lines:
        if not is_number(line.get("step")):
            continue
        if kept and kept[-1]["step"] > line["step"]:
            kept = [old for old in kept if old["step"] < line["step"]]
        kept.append(line)
    return kept


def overall_of(folder: Path) -> dict[str, Any]:
    """`stats/overall.json`, empty if there is none that can be read: a picture does without."""
    try:
        data = read_json(folder / STATS / OVERALL)
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def stages_of(lines: Lines, known: Mapping[str, Any]) -> dict[str, float]:
    """Name -> first step; of a stage that the statistics do not know yet, the last line before it."""
    stages = {str(name): float(step) for name, step in known.items()} if isinstance(known, Mapping) else {}
    before = 0.0
    for line in lines:
        name = line.get("stage")
        if isinstance(name, str) and name not in stages:
            stages[name] = before
        before = float(line["step"])
    return dict(sorted(stages.items(), key=lambda item: item[1]))
