"""Many points as few, so that the picture stays the same: of every stretch the first, lowest, highest and last one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from morphing_trainer.reporting.series import Points

MOST = 1600
"""Points of a curve: more than the picture has pixels across."""


def thinned(points: Sequence[tuple[float, float]], most: int = MOST) -> Points:
    """At most `most` points (at least 4 are kept if there are as many), in their order.

    The range of x is divided into equal stretches. Of each the first, the lowest, the highest and the last point stay,
    so a peak of one point is still drawn (Jugel et al., "M4", VLDB 2014); and one that is NaN or infinite, so the line
    still has a gap there. x must not fall.
    """
    if len(points) <= most:
        return list(points)
    low, high = points[0][0], points[-1][0]
    stretches = max(1, most // 5)
    width = (high - low) / stretches
    if width <= 0:  # all at one place
        return _told([(0, points[0]), *enumerate(points[1:], 1)])
    kept: Points = []
    stretch: list[tuple[int, tuple[float, float]]] = []
    current = 0
    for number, point in enumerate(points):
        at = min(stretches - 1, int((point[0] - low) / width))
        if at != current:
            kept += _told(stretch)
            stretch, current = [], at
        stretch.append((number, point))
    return kept + _told(stretch)


def _told(stretch: Sequence[tuple[int, tuple[float, float]]]) -> Points:
    """The points of a stretch that tell it: at most five."""
    if len(stretch) <= 5:
        return [point for _, point in stretch]
    finite = [each for each in stretch if math.isfinite(each[1][1])]
    broken = [each for each in stretch if not math.isfinite(each[1][1])]
    chosen = {stretch[0][0]: stretch[0][1], stretch[-1][0]: stretch[-1][1]}
    if finite:
        for number, point in (min(finite, key=lambda each: each[1][1]), max(finite, key=lambda each: each[1][1])):
            chosen[number] = point
    for number, point in broken[:1]:
        chosen[number] = point
    return [chosen[number] for number in sorted(chosen)]
