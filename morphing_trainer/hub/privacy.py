"""What must not leave the machine with a run: places on its disk, and tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{6,}")
_PLACE = re.compile(
    r"(?<![\w.:/~\\>-])"  # not within a relative path, a URL or a tag
    r"(?:(?:~[\w.-]*|[A-Za-z]:)?[/\\][^\s/\\'\"`,;()<>|\]}]+(?:[/\\][^\s/\\'\"`,;()<>|\]}]+)+[/\\]?)"
)
HIDDEN = "<token>"
_PLACE_ITSELF = "<path>"


def anonymous(text: str, places: Sequence[Path] = ()) -> str:
    """`text` without tokens; of an absolute path the last part is left, if it is deep enough to name nobody.

    Args:
        places: folders that are left out wherever they stand, even with spaces in their names.
    """
    for place in sorted({str(place) for place in places}, key=len, reverse=True):
        if len(Path(place).parts) > 1:
            text = text.replace(f"{place}/", "").replace(place, _PLACE_ITSELF)
    return _PLACE.sub(_last, _TOKEN.sub(HIDDEN, text))


def anonymous_data(value: Any, places: Sequence[Path] = ()) -> Any:
    """The same of all texts in plain data."""
    if isinstance(value, str):
        return anonymous(value, places)
    if isinstance(value, Mapping):
        return {key: anonymous_data(item, places) for key, item in value.items()}
    return [anonymous_data(item, places) for item in value] if isinstance(value, list | tuple) else value


def anonymous_lines(lines: bytes, places: Sequence[Path] = ()) -> bytes:
    """JSON lines with such texts. A line that tells of no place stays as it is, to the byte; one that is none goes."""
    kept = []
    for line in lines.splitlines():
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            continue
        found = anonymous_data(data, places)
        kept.append(line if found == data else json.dumps(found).encode())
    return b"".join(line + b"\n" for line in kept)


def places_of(run: Path) -> list[Path]:
    """Folders around a run that its files may name."""
    return [run.absolute().parent, run.resolve().parent, Path.cwd(), Path.home()]


def _last(found: re.Match[str]) -> str:
    parts = [part for part in re.split(r"[/\\]", found[0]) if part and part != "~"]
    # /home/somebody: the last part is the person
    return parts[-1] if len(parts) > 2 else _PLACE_ITSELF
