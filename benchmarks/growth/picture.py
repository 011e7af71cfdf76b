"""Pictures of docs/benchmarks/growth.md: losses over what is spent, and where the runs end. Plain SVG, with colours for
light and dark, like the pictures of docs/generation; of the same results always the same text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.growth.reading import Trained, judged, telling
from morphing_trainer.reporting.report.scales import Scale, decimals, linear_ticks, scale_of

STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1d2733; }
.small { font-size: 12px; fill: #51606f; } .bold { font-weight: 600; } .tiny { font-size: 11px; }
.card { fill: #f7f9fc; stroke: #d5dde8; } .grid { stroke: #d5dde8; } .axis { stroke: #8a97a5; fill: none; }
path { fill: none; stroke-width: 2; stroke-linejoin: round; } .thin { stroke-width: 1.3; }
.scratch { stroke: #8a97a5; } .a { stroke: #2f6fb7; } .b { stroke: #2e8b57; } .c { stroke: #c9802b; }
.d { stroke: #8a4fb5; } .e { stroke: #c2405f; } circle { stroke-width: 1.5; fill: #f7f9fc; }
circle.full.scratch { fill: #8a97a5; } circle.full.a { fill: #2f6fb7; } circle.full.b { fill: #2e8b57; }
circle.full.c { fill: #c9802b; } circle.full.d { fill: #8a4fb5; }
circle.full.e { fill: #c2405f; }
@media (prefers-color-scheme: dark) {
text { fill: #e6ebf1; } .small { fill: #a9b5c2; } .card { fill: #1a2027; stroke: #323d49; } .grid { stroke: #323d49; }
.a { stroke: #6fa8e8; } .b { stroke: #63c48d; } .c { stroke: #e0a050; } .d { stroke: #c08fe0; }
.e { stroke: #f08aa0; }
circle { fill: #1a2027; }
circle.full.a { fill: #6fa8e8; } circle.full.b { fill: #63c48d; } circle.full.c { fill: #e0a050; }
circle.full.d { fill: #c08fe0; } circle.full.e { fill: #f08aa0; }
}
"""
WIDTH, LEFT, RIGHT = 740, 66, 716
CURVES, ENDS = (48, 268), (0, 300)
"""Heights of the panels: of the first its top and its bottom, of the second those below its own."""

LOOKS = ("a", "b", "c", "d", "e")
LETTER = 6.2
"""Pixels of one, about."""


@dataclass(frozen=True)
class Axis:
    """What is spent: key of a result, place in a curve's points, name, title with the unit, and that unit."""

    key: str
    place: int
    name: str
    title: str
    unit: float


AXES = {
    "flops": Axis("flops", 0, "FLOPs", "TFLOP of training, logarithmic", 1e12),
    "seconds": Axis("seconds", 1, "seconds", "processor seconds of training, logarithmic", 1.0),
}


@dataclass(frozen=True)
class Panel:
    """Where values are drawn."""

    x: Scale
    y: Scale
    top: float
    bottom: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels."""
        height = self.bottom - self.top
        return round(LEFT + (RIGHT - LEFT) * self.x.at(x), 1), round(self.bottom - height * self.y.at(y), 1)

    def frame(self, axis: str) -> Iterator[str]:
        """Grid, numbers, and what the axes are."""
        places = decimals(losses := self.y.ticks(6))
        for loss in losses:
            _, y = self.at(self.x.low, loss)
            yield f'<line class="grid" x1="{LEFT}" y1="{y:g}" x2="{RIGHT}" y2="{y:g}"/>'
            yield _text(LEFT - 8, y + 4, f"{loss:.{places}f}", "small", "end")
        near = self.x.high < 5 * self.x.low  # too few powers of ten and their like
        for value in linear_ticks(self.x.low, self.x.high, 8) if near else self.x.ticks(9):
            x, _ = self.at(value, self.y.low)
            yield f'<line class="axis" x1="{x:g}" y1="{self.bottom:g}" x2="{x:g}" y2="{self.bottom + 5:g}"/>'
            yield _text(x, self.bottom + 19, f"{value:g}", "small")
        yield f'<path class="axis thin" d="M{LEFT} {self.top:g} V{self.bottom:g} H{RIGHT}"/>'
        yield _text((LEFT + RIGHT) / 2, self.bottom + 38, axis, "small")

    def line(self, points: Sequence[tuple[float, float]], look: str) -> str:
        """Points, from the first on that has its place."""
        seen = [point for point in points if point[0] >= self.x.low]
        while seen[1:] and seen[1][1] > self.y.high:
            seen = seen[1:]
        if seen and seen[0][1] > self.y.high:
            seen = [_crossing(seen, self.y.high), *seen[1:]] if len(seen) > 1 else []
        places = [self.at(*point) for point in seen if point[1] <= self.y.high]
        way = " L".join(f"{x:g} {y:g}" for x, y in places)
        return f'<path class="{look}" d="M{way}"/>' if len(places) > 1 else ""


def draw(trained: Trained, axis: Axis) -> str:
    """Above the loss while it is trained, below the final losses against the line of the runs from scratch.

    All are means over the seeds that there are. Curves are those of the runs from scratch and of telling recipes, in
    colours; the numbers below are those of the recipes' tables.
    """
    ends = {
        name: (trained.mean(name, axis.key) / axis.unit, trained.mean(name, "loss"))
        for name in (*trained.scratch, *trained.flops)
    }
    if not ends:
        said = "Nothing has been trained yet."
        return _svg(120, said, [_text(WIDTH / 2, 66, said, "small")])
    looks = dict(zip(telling(trained), LOOKS, strict=False))
    final = [loss for _, loss in ends.values()]
    legend_rows = -(-(len(looks) + 1) // 2)
    top = CURVES[1] + 66 + 20 * legend_rows
    parts = [_text(24, 28, "Evaluation loss while it is trained", "bold", "start")]
    parts.append(_text(290, 28, "curves: of a part of the validation text; dots: of all of it", "small", "start"))
    highest = max(final) + max(0.3, max(final) - min(final))
    lowest = min(*final, *(y for name in (*trained.scratch, *looks) for _, y in trained.curve(name, axis.place)))
    parts += _curves(trained, axis, looks, Scale(lowest - 0.05, highest))
    for number, (name, look) in enumerate([("from scratch", "scratch"), *looks.items()]):
        x, y = 30 + 350 * (number % 2), CURVES[1] + 62 + 20 * (number // 2)
        parts.append(f'<path class="{look}" d="M{x} {y} h22"/>')
        parts.append(_text(x + 30, y + 4, _cut(name, 50), "small", "start"))
    parts.append(_text(24, top + 24, "Where the runs end", "bold", "start"))
    said = f"line: from scratch, with their steps; full: pays in {axis.name}; numbers as in the tables"
    parts.append(_text(190, top + 24, said, "small", "start"))
    parts += _ends(trained, axis, ends, looks, top + 44)
    return _svg(top + 44 + ENDS[1] + 56, f"Losses over {axis.title}", parts)


def _curves(trained: Trained, axis: Axis, looks: Mapping[str, str], losses: Scale) -> Iterator[str]:
    drawn = {
        name: [(x / axis.unit, y) for x, y in trained.curve(name, axis.place)] for name in (*trained.scratch, *looks)
    }
    seen = [x for points in drawn.values() for x, y in points if y <= losses.high]
    panel = Panel(scale_of(seen, log=True, margin=0.02), losses, *CURVES)
    yield from panel.frame(axis.title)
    for name, points in drawn.items():
        yield panel.line(points, looks.get(name, "scratch thin"))
    for name in drawn:
        x, y = panel.at(trained.mean(name, axis.key) / axis.unit, trained.mean(name, "loss"))
        yield _dot(x, y, looks.get(name, "scratch"), full=True)


def _ends(
    trained: Trained, axis: Axis, ends: Mapping[str, tuple[float, float]], looks: Mapping[str, str], top: float
) -> Iterator[str]:
    panel = Panel(
        scale_of((x for x, _ in ends.values()), log=True), scale_of(y for _, y in ends.values()), top, top + ENDS[1]
    )
    yield from panel.frame(axis.title)
    yield panel.line(sorted(ends[name] for name in trained.scratch), "scratch")
    savings = trained.flops if axis.key == "flops" else trained.seconds
    places = {name: panel.at(*point) for name, point in ends.items()}
    said = {name: f"{trained.of(name)[0]['steps']:,}" for name in trained.scratch}
    numbers = {name: str(number) for number, name in enumerate(trained.experiment.recipes, 1)}
    said |= {name: numbers[name] for name in trained.flops}
    for name, (x, y) in places.items():
        pays = name in savings and judged(trained, savings[name]).startswith("pays")
        yield _dot(x, y, looks.get(name, "scratch"), full=pays)
    for name, (x, y) in _labels(places, said, above=trained.scratch).items():
        yield _text(x, y, said[name], "tiny")


def _labels(
    places: Mapping[str, tuple[float, float]], said: Mapping[str, str], above: Collection[str]
) -> dict[str, tuple[float, float]]:
    """Where a word for each point has room: the first free place around it, or `above` it."""
    taken = [(x - 6, y - 5, x + 6, y + 5) for x, y in places.values()]
    found = {}
    for name, (x, y) in places.items():
        half = LETTER * len(said[name]) / 2
        around = [(half + 8, 4), (-half - 8, 4), (0, -8), (0, 17), (half + 6, -7), (-half - 6, -7), (half + 6, 15)]
        around += [(-half - 6, 15), (0, -20), (0, 29), (half + 20, 4), (-half - 20, 4)]
        if name in above:
            around = [(min(half + 6, RIGHT + 8 - half - x), -7)]
        boxes = [(x + dx, y + dy, (x + dx - half, y + dy - 9, x + dx + half, y + dy)) for dx, dy in around]
        at = next((box for box in boxes if not any(_meet(box[2], other) for other in taken)), boxes[0])
        taken.append(at[2])
        found[name] = (round(at[0], 1), round(at[1], 1))
    return found


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _crossing(points: Sequence[tuple[float, float]], height: float) -> tuple[float, float]:
    """Where the line from the first point to the second comes below `height`."""
    (x1, y1), (x2, y2) = points[:2]
    return x1 + (x2 - x1) * (y1 - height) / (y1 - y2), height


def _dot(x: float, y: float, look: str, *, full: bool) -> str:
    return f'<circle class="{"full " if full else ""}{look}" cx="{x:g}" cy="{y:g}" r="4"/>'


def _text(x: float, y: float, said: str, kind: str = "", anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{escape(said)}</text>'


def _cut(said: str, most: int) -> str:
    return said if len(said) <= most else f"{said[: most - 1]}…"


def _svg(height: float, title: str, parts: Iterable[str]) -> str:
    box = f'viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}"'
    card = f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:g}" rx="10"/>'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        card,
        *parts,
        "</svg>",
    ]
    return "\n".join(line for line in lines if line) + "\n"
