"""The log lines of a run as a file, so that it can be drawn while it trains: `stats/history.jsonl`.

It holds what `transformers` keeps in `log_history`, one line per JSON object. A resumed run begins by writing the lines
that its checkpoint knows, which drops what the run had done beyond it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from morphing_trainer.errors import ConfigError

Line = dict[str, Any]

_STRICT = json.JSONEncoder(allow_nan=False).encode


def write_whole(path: Path, text: str) -> None:
    """Write a file in one go: an older one is replaced by a whole one, or stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def begin_history(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Make the file hold exactly these lines."""
    write_whole(path, "".join(_text(line) for line in lines))


def append_history(path: Path, line: Mapping[str, Any]) -> None:
    """Add one line. It is flushed, not synced: a crash may cost the last lines, which a resume rewrites."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_text(line))


def read_history(path: Path) -> list[Line]:
    """All lines. A last one that is being written, or was cut short, is left out.

    Raises:
        ConfigError: if another line is no log line.
    """
    lines, faults = read_lines(path, errors="strict")
    if faults:
        raise ConfigError(f"{path}:{faults[0]}; restore the file")
    return lines


def read_lines(path: Path, errors: str = "replace") -> tuple[list[Line], list[str]]:
    """The log lines, and what is wrong with those that are none, each with its number. The last may be cut short."""
    texts = path.read_text(encoding="utf-8", errors=errors).splitlines()
    lines: list[Line] = []
    faults = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            if not isinstance(line, dict):
                raise ValueError("not an object")
            lines.append({key: _number(value) for key, value in line.items()})
        except (ValueError, RecursionError) as error:
            if number < len(texts):
                faults.append(f"{number}: is not a log line ({error})")
    return lines, faults


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _text(line: Mapping[str, Any]) -> str:
    """A line as the file holds it. A long run resumes with tens of thousands, of which few need another form."""
    try:
        return _STRICT(line) + "\n"
    except (TypeError, ValueError):
        return json.dumps(plain(line)) + "\n"


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value
