"""The examples that evaluations have shown, as a file beside the statistics: `stats/examples.jsonl`.

One JSON object in each line: `step`, `name` (of the evaluation set, where there are several), `prompt` (of a long one
the end), `truth`, `prediction`. A run that goes on from a checkpoint drops what it had shown beyond it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from morphing_trainer.reporting.examples import Example
from morphing_trainer.run.history import append_history, write_whole

MOST = 4000
"""Characters of a text that are kept."""
_TEXTS = ("name", "prompt", "truth", "prediction")


def begin_examples(path: Path, step: int) -> None:
    """Make the file hold what was shown up to `step`; there is none before the first example."""
    if not path.exists():
        return
    kept = [line for line in read_examples(path)[0] if line["step"] <= step]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))


def append_example(path: Path, step: int, example: Example) -> None:
    """Add one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = {"prompt": example.prompt[-MOST:], "truth": example.truth[:MOST], "prediction": example.prediction[:MOST]}
    append_history(path, {"step": step, "name": example.name, **texts})


def read_examples(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """All that led to the run as it is, each set once per step; and what is wrong with lines that are none.

    The last line may be cut short: it may be being written.

    Raises:
        OSError: if the file cannot be read.
    """
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept: list[dict[str, Any]] = []
    faults = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not _sound(line):
            if number < len(texts):
                faults.append(f"{number}: is not an example")
            continue
        if kept and kept[-1]["step"] >= line["step"]:
            kept = [old for old in kept if old["step"] < line["step"] or _beside(old, line)]
        kept.append(line)
    return kept, faults


def _beside(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Of another set, at the same step."""
    return bool(old["step"] == new["step"] and old["name"] != new["name"])


def _sound(line: Any) -> bool:
    if not isinstance(line, dict):
        return False
    step = line.get("step")
    return type(step) is int and 0 <= step < 2**62 and all(isinstance(line.get(name), str) for name in _TEXTS)
