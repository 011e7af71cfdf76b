"""Numbers from log lines, as points to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Points = list[tuple[float, float]]  # (x, value), in the order they were logged

SMOOTH_FROM = 150  # points from which a moving average is drawn over the raw training loss


def series(log_history: Sequence[Mapping[str, Any]], key: str) -> Points:
    """The points of `key`. Where a run went back to an earlier checkpoint, what it had done beyond it is dropped."""
    points: Points = []
    for entry in log_history:
        step, value = entry.get("step"), entry.get(key)
        if not isinstance(step, int | float) or not isinstance(value, int | float):
            continue
        if points and points[-1][0] > step:
            points = [point for point in points if point[0] < step]
        points.append((float(step), float(value)))
    return points


def finite(points: Points) -> tuple[list[float], list[float]]:
    """x and values, with a gap in the line where the value is NaN or infinite."""
    return [step for step, _ in points], [value if math.isfinite(value) else math.nan for _, value in points]


def smoothed(points: Points) -> tuple[list[float], list[float]]:
    """A centred average over about 2 % of the points (one that looks back only would lie above a falling loss)."""
    values = np.array([value for _, value in points])
    finite = np.isfinite(values)
    sums = np.concatenate(([0.0], np.cumsum(np.where(finite, values, 0.0))))
    counts = np.concatenate(([0], np.cumsum(finite)))
    index = np.arange(len(points))
    reach = np.minimum(max(2, len(points) // 100), np.minimum(index, index[::-1]))  # narrower at the ends
    low, high = index - reach, index + reach + 1
    average = (sums[high] - sums[low]) / np.maximum(1, counts[high] - counts[low])
    return [step for step, _ in points], np.where(finite, average, np.nan).tolist()


def is_loss(key: str) -> bool:
    """Whether a key of the log is an evaluation loss."""
    return key.startswith("eval_") and key.endswith("loss")


def metric_name(key: str) -> str:
    """`eval_loss` -> `evaluation loss`, `eval_books_loss` -> `evaluation books loss`."""
    return f"evaluation {key.removeprefix('eval_').replace('_', ' ')}"
