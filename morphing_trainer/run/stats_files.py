"""`stats/*.json`: what was trained on and how well, of the whole run and of each stage."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from morphing_trainer.reporting.times import shares
from morphing_trainer.run.folder import OVERALL
from morphing_trainer.run.history import plain, write_whole
from morphing_trainer.run.statistics import Totals, overall

_DULL = ("_runtime", "_samples_per_second", "_steps_per_second", "_model_preparation_time", "_jit_compilation_time")
_RISING = ("accuracy", "f1", "bleu", "rouge", "reward")
"""Parts of the names of metrics that are better when they are higher; all others are better when lower."""


def train_statistics(totals: Totals, seconds: float | None = None) -> dict[str, Any]:
    """Counts and mean training loss; `seconds` in place of the totals' own."""
    return {
        "steps": totals.steps,
        "samples": totals.samples,
        "tokens": totals.tokens,
        "dropped_samples": totals.dropped,
        "loss": totals.loss,
        "loss_tokens": totals.loss_tokens,
        "seconds": round(totals.seconds if seconds is None else seconds, 3),
    }


def validation_statistics(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Number of evaluations, and of every metric the last and the best value with their optimizer steps.

    Args:
        lines: log lines; those of evaluations have keys that begin with `eval_`. A value that is NaN or infinite is
            never the best. Of two evaluations at one step (before and after an operation) both count.
    """
    points: dict[str, list[tuple[int, float]]] = {}
    evaluations = 0
    for line in lines:
        metrics = {key: value for key, value in line.items() if key.startswith("eval_") and not key.endswith(_DULL)}
        evaluations += bool(metrics)
        for key, value in metrics.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                points.setdefault(key.removeprefix("eval_"), []).append((int(line.get("step", 0)), float(value)))
    found: dict[str, Any] = {"evaluations": evaluations}
    for name, values in points.items():
        last_step, last = values[-1]
        found[name] = {"last": last, "last_step": last_step, **_best(name, values)}
    return found


def _best(name: str, values: Sequence[tuple[int, float]]) -> dict[str, Any]:
    finite = [(step, value) for step, value in values if math.isfinite(value)]
    if not finite:
        return {"best": None, "best_step": None}
    sign = -1 if any(part in name for part in _RISING) else 1
    step, value = min(finite, key=lambda point: sign * point[1])
    return {"best": value, "best_step": step}


def statistics_files(
    totals: Mapping[str, Totals],
    lines: Sequence[Mapping[str, Any]],
    *,
    stages: Mapping[str, int],
    seconds: float,
    profile: Mapping[str, float],
) -> dict[str, dict[str, Any]]:
    """File name -> content.

    Args:
        totals: by stage, in the order of the plan.
        lines: the whole log; a line's `stage` says which stage it belongs to.
        stages: those that have been reached, and the optimizer step at which each began; the last is the current.
        seconds: time spent training, over all restarts.
        profile: seconds by part, see `timing`.
    """
    found = shares(profile)
    took = {part: {"seconds": round(profile[part], 3), "share": round(found[part], 4)} for part in found}
    current = list(stages)[-1]
    files: dict[str, dict[str, Any]] = {
        OVERALL: {
            "stage": current,
            "stages": dict(stages),
            "train": train_statistics(overall(totals.values()), seconds),
            "validation": validation_statistics(lines),
            "timing": took,
        }
    }
    for name in stages:
        of_stage = [line for line in lines if line.get("stage", current if len(stages) == 1 else None) == name]
        content = {
            "stage": name,
            "train": train_statistics(totals.get(name, Totals())),
            "validation": validation_statistics(of_stage),
        }
        files[file_name(name, files)] = content
    return files


def file_name(stage: str, taken: Mapping[str, Any]) -> str:
    """`<stage>.json`; characters that file names cannot have are replaced, and a name that is taken gets a number."""
    stem = re.sub(r"[^\w.-]+", "_", stage).strip(".") or "stage"
    name, number = f"{stem}.json", 2
    while name in taken:
        name, number = f"{stem}-{number}.json", number + 1
    return name


def write_statistics(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Write each file in one go; numbers that are not finite are written as text."""
    for name, content in files.items():
        write_whole(folder / name, json.dumps(plain(content), indent=1, allow_nan=False) + "\n")
