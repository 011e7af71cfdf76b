"""A chart over optimizer steps as inline SVG that keeps its text at its size, however wide the page is.

Places along x are percentages of the width, and the curves lie in a picture of their own that is stretched; so nothing
depends on the width, and no script is needed. The numbers at the y axis stand in a column beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from morphing_trainer.reporting.report.scales import Scale, linear_ticks, scale_of
from morphing_trainer.reporting.report.text import el, fnum, joined
from morphing_trainer.reporting.report.thinning import thinned
from morphing_trainer.reporting.series import Points

WIDTH = 1000.0
"""Of the stretched picture, in its own units."""
FOOT, NUMBERS = 38, 22
"""Height of what stands at the x axis, in pixels: the numbers, and below them its name."""
_MOST_DOTS = 60
_READ = 500
"""Points of a curve whose values can be read by pointing at them."""


@dataclass(frozen=True)
class Curve:
    """One line. `look`: its class, which decides colour and dashes. `step`: a value holds until the next one.

    `dots`: a mark at each point (where they are few). `faint`: points of a thin line behind it.
    """

    name: str
    points: Points
    look: str
    step: bool = False
    dots: bool = False
    faint: Points = field(default_factory=list)


@dataclass(frozen=True)
class Frame:
    """What all charts of a run share.

    Attributes:
        end: the last step.
        operations: (step, kind, words) of each; kind: its class.
        stages: (name, first step, last step).
    """

    end: float
    operations: Sequence[tuple[float, str, str]] = ()
    stages: Sequence[tuple[str, float, float]] = ()

    def at(self, step: float) -> float:
        """Where a step lies, 0 to 1."""
        return min(1.0, max(0.0, step / self.end))


def plot(
    frame: Frame,
    curves: Sequence[Curve],
    scale: Scale,
    height: int,
    label: str,
    write: Callable[[float], str],
    *,
    ticks: Sequence[float],
    told: Callable[[float], str],
    head: Markup | None = None,
    head_height: int = 0,
) -> Markup:
    """The two pictures of a chart: numbers, and curves.

    Args:
        label: what the picture shows, for those who do not see it.
        write: a value as text, at the axis; `told`: at a point.
        ticks: values at the y axis.
        head: what stands above the curves, and its height.
    """
    top = head_height + 4
    rows = [(top + height * (1 - scale.at(value)), write(value)) for value in ticks]
    whole = top + height + FOOT
    numbers = [el("text", text, x=46, y=fnum(y + 4), class_="tick", text_anchor="end") for y, text in rows]
    axis = el("svg", *numbers, class_="axis", width=50, height=whole, aria_hidden="true", focusable="false")
    parts: list[Any] = [el("title", label)]
    parts += _bands(frame, top, height)
    parts += [el("line", x1="0", x2="100%", y1=y, y2=y, class_="grid") for y, _ in rows]
    parts += _lines(frame, top, height)
    stretched = [path for curve in curves for path in _paths(frame, curve, scale, height)]
    stretch = {"viewBox": f"0 0 {fnum(WIDTH)} {height}", "preserveAspectRatio": "none", "overflow": "visible"}
    parts.append(el("svg", *stretched, x="0", y=top, width="100%", height=height, **stretch))
    parts += [dot for curve in curves for dot in _dots(frame, curve, scale, top, height, told)]
    parts += _broken(frame, curves, top)
    parts += [head] if head is not None else []
    parts += _steps(frame, whole)
    parts.append(el("line", class_="cursor", x1="0", x2="0", y1=top, y2=top + height, visibility="hidden"))
    return joined([axis, el("svg", *parts, class_="curves", width="100%", height=whole, role="img", aria_label=label)])


def readings(curves: Sequence[Curve], write: Callable[[float], str]) -> list[list[Any]]:
    """What the script shows where one points: [name, [[step, text], ...]] of every curve."""
    return [[curve.name, [[_step(x), write(value)] for x, value in thinned(curve.points, _READ)]] for curve in curves]


def extent(curves: Sequence[Curve], *, log: bool = False, zero: bool = False) -> Scale:
    """The scale on which the curves have their place; a lone peak of the faint points is left to be cut off."""
    values = [value for curve in curves for _, value in curve.points]
    faint = sorted(value for curve in curves for _, value in curve.faint if math.isfinite(value))
    if faint:
        values += [faint[len(faint) // 200], faint[-1 - len(faint) // 200]]
    return scale_of(values, log=log, zero=zero)


def _step(x: float) -> float | int:
    return int(x) if x == int(x) else x


def _bands(frame: Frame, top: int, height: int) -> list[Markup]:
    """Stages, as bands behind everything."""
    if len(frame.stages) < 2:
        return []
    found = []
    for number, (name, low, high) in enumerate(frame.stages):
        x, wide = 100 * frame.at(low), 100 * (frame.at(high) - frame.at(low))
        place = {"x": f"{fnum(x)}%", "width": f"{fnum(max(0.0, wide))}%"}
        title = el("title", f"stage {name}: step {low:,.0f} to {high:,.0f}")
        found.append(el("rect", title, y=top, height=height, class_=f"stage stage-{number % 2}", **place))
    return found


def _lines(frame: Frame, top: int, height: int) -> list[Markup]:
    """Operations, as lines through the curves; of several in one place, one of each kind."""
    found, seen = [], set()
    grid = 500 if len(frame.operations) <= 150 else 100
    for step, kind, words in frame.operations:
        x = f"{fnum(100 * round(grid * frame.at(step)) / grid)}%"
        if (x, kind) in seen:
            continue
        seen.add((x, kind))
        title = el("title", words)
        found.append(el("line", title, x1=x, x2=x, y1=top, y2=top + height, class_=f"operation {kind}"))
    return found


def _paths(frame: Frame, curve: Curve, scale: Scale, height: int) -> list[Markup]:
    found = []
    for points, look in ((curve.faint, f"curve faint {curve.look}"), (curve.points, f"curve {curve.look}")):
        if drawn := path(frame, thinned(points), scale, height, step=curve.step):
            found.append(el("path", d=drawn, class_=look))
    return found


def path(frame: Frame, points: Sequence[tuple[float, float]], scale: Scale, height: int, *, step: bool = False) -> str:
    """The `d` of a line, with a gap where a value is NaN or infinite (or, under `log`, not above 0)."""
    parts: list[str] = []
    down, before = False, ""
    for x, value in points:
        if not math.isfinite(value) or (scale.log and value <= 0):
            down = False
            continue
        at, y = fnum(WIDTH * frame.at(x)), fnum(height * (1 - scale.at(value)))
        if step and down and y != before:
            parts.append(f"L{at} {before}")
        parts.append(f"{'L' if down else 'M'}{at} {y}")
        down, before = True, y
    return "".join(parts)


def _dots(
    frame: Frame, curve: Curve, scale: Scale, top: int, height: int, write: Callable[[float], str]
) -> list[Markup]:
    """Marks at points; a lone one would not be seen as a line."""
    shown = [point for point in curve.points if math.isfinite(point[1]) and (point[1] > 0 or not scale.log)]
    if not shown or (len(shown) > 1 and not curve.dots) or len(shown) > _MOST_DOTS:
        return []
    found = []
    for x, value in shown:
        title = el("title", f"step {x:,.0f}: {curve.name} {write(value)}")
        at, y = f"{fnum(100 * frame.at(x))}%", top + height * (1 - scale.at(value))
        found.append(el("circle", title, cx=at, cy=fnum(y), r="3.2", class_=f"dot {curve.look}"))
    return found


def _broken(frame: Frame, curves: Sequence[Curve], top: int) -> list[Markup]:
    """A cross at the upper edge where a value is NaN or infinite."""
    told = {x: curve.name for curve in curves for x, value in curve.points if not math.isfinite(value)}
    found = []
    for x, name in sorted(told.items())[:40]:
        title = el("title", f"step {x:,.0f}: {name} is NaN or infinite")
        at = f"{fnum(100 * frame.at(x))}%"
        found.append(el("text", title, "\u00d7", x=at, y=top + 10, class_="broken", text_anchor="middle"))
    return found


def _steps(frame: Frame, whole: int) -> list[Markup]:
    """Numbers at the x axis, on a narrow page every second one; and its name."""
    found = [el("text", "optimizer step", x="50%", y=whole - 4, class_="axis-name", text_anchor="middle")]
    ticks = [tick for tick in linear_ticks(0.0, frame.end, 8, whole=True) if tick <= frame.end]
    for number, tick in enumerate(ticks):
        share = frame.at(tick)
        anchor = "start" if share < 0.02 else "end" if share > 0.97 else "middle"
        name = "tick" if number % 2 == 0 else "tick minor"
        at = {"x": f"{fnum(100 * share)}%", "y": whole - FOOT + NUMBERS - 6}
        found.append(el("text", f"{tick:,.0f}", class_=name, text_anchor=anchor, **at))
    return found
