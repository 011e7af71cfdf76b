"""The pictures of the concept pages. Plain SVG with its own background and colours for light and dark, so that it is
readable wherever it is shown."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

STYLE = """
text { font: 14px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1d2733; }
.small { font-size: 12px; fill: #51606f; } .bold { font-weight: 600; }
.mono { font-family: ui-monospace, Menlo, monospace; }
.card { fill: #f7f9fc; stroke: #d5dde8; }
.old { fill: #dbe9fb; stroke: #2f6fb7; } .new { fill: #dff3e4; stroke: #2e8b57; }
.zero { fill: #ffffff; stroke: #8a97a5; stroke-dasharray: 4 3; } .warm { fill: #fdebd3; stroke: #c9802b; }
.line { stroke: #51606f; fill: none; stroke-width: 1.5; } .tip { fill: #51606f; } .axis { stroke: #8a97a5; fill: none; }
.curve { stroke: #2f6fb7; fill: none; stroke-width: 2.5; } .mark { stroke: #c9802b; stroke-dasharray: 4 3; }
@media (prefers-color-scheme: dark) {
text { fill: #e6ebf1; } .small { fill: #a9b5c2; } .card { fill: #1a2027; stroke: #323d49; }
.old { fill: #1f3a5a; stroke: #6fa8e8; } .new { fill: #1d4430; stroke: #63c48d; }
.zero { fill: #1a2027; stroke: #8a97a5; }
.warm { fill: #523a1b; stroke: #e0a050; } .line { stroke: #a9b5c2; } .tip { fill: #a9b5c2; } .curve { stroke: #6fa8e8; }
}
"""


def svg(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    """A picture on a card."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    lines = [
        f'{head} role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<defs>{tip}<path class="tip" d="M0 0 L8 4 L0 8 z"/></marker></defs>',
        f'<rect class="card" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="10"/>',
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def text(x: float, y: float, said: str, kind: str = "", anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{escape(said)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str, said: str = "", under: str = "") -> str:
    """A box with words in the middle and, smaller, below them."""
    middle = x + width / 2
    lines = [f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5"/>']
    if said:
        lines.append(text(middle, y + height / 2 + (-2 if under else 5), said))
    if under:
        lines.append(text(middle, y + height / 2 + 14, under, "small"))
    return "".join(lines)


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="line" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" marker-end="url(#tip)"/>'


def bent(x1: float, y1: float, x2: float, y2: float) -> str:
    """An arrow that leaves and arrives level."""
    middle = (x1 + x2) / 2
    way = f"M{x1:g} {y1:g} C{middle:g} {y1:g} {middle:g} {y2:g} {x2:g} {y2:g}"
    return f'<path class="line" d="{way}" marker-end="url(#tip)"/>'


def lineage() -> str:
    """From a description to another, and what follows the lineage between them."""
    parts = [
        text(110, 30, "before", "bold"),
        text(330, 30, "lineage", "bold"),
        text(590, 30, "after", "bold"),
    ]
    rows = [
        ("wte", "carried", "wte", "old"),
        ("mlp.c_fc", "columns gathered, gradient x share", "mlp.c_fc, twice as wide", "old"),
        ("mlp.c_proj", "rows gathered, weight x share", "mlp.c_proj, twice as wide", "old"),
    ]
    for number, (old, how, new, kind) in enumerate(rows):
        y = 48 + number * 52
        parts += [
            box(40, y, 140, 36, kind, old),
            arrow(184, y + 18, 476, y + 18),
            text(330, y + 12, how, "small"),
            box(480, y, 220, 36, "new" if number else kind, new),
        ]
    y = 214
    parts.append(f'<line class="axis" x1="40" y1="{y}" x2="700" y2="{y}"/>')
    parts.append(text(370, y + 24, "the same lineage moves all that belongs to a parameter:", ""))
    followers = ("weight", "Adam's m and v", "step count", "param group", "frozen or not")
    for number, said in enumerate(followers):
        parts.append(box(40 + number * 134, y + 38, 124, 32, "warm", said))
    return svg(740, 306, "A lineage says for every new parameter which old one it descends from", parts)


def widening() -> str:
    """One unit becomes two that share its output."""
    parts = [text(150, 30, "one unit", "bold"), text(540, 30, "two copies, shares 0.4 and 0.6", "bold")]
    parts += [
        box(30, 110, 60, 40, "old", "x"),
        box(130, 110, 60, 40, "old", "unit"),
        box(240, 110, 60, 40, "old", "y"),
        arrow(92, 130, 126, 130),
        arrow(192, 130, 236, 130),
        text(109, 102, "w", "mono small"),
        text(214, 102, "v", "mono small"),
    ]
    parts += [
        text(345, 136, "=", "bold"),
        box(390, 110, 60, 40, "old", "x"),
        box(510, 64, 70, 40, "new", "unit"),
        box(510, 156, 70, 40, "new", "copy"),
        box(650, 110, 60, 40, "old", "y"),
        bent(452, 124, 506, 86),
        bent(452, 136, 506, 174),
        bent(582, 84, 646, 122),
        bent(582, 176, 646, 138),
        text(474, 88, "w", "mono small"),
        text(474, 184, "w", "mono small"),
        text(622, 84, "0.4 v", "mono small"),
        text(622, 190, "0.6 v", "mono small"),
    ]
    parts += [
        text(370, 228, "0.4 v + 0.6 v = v, so y is what it was.", ""),
        text(370, 250, "The copies see unequal gradients, 0.4 g and 0.6 g, and so become different.", "small"),
    ]
    return svg(740, 270, "Widening splits the output of a unit between its copies", parts)


def stacking() -> str:
    """Copy and identity."""
    parts = [
        text(110, 30, "before", "bold"),
        text(300, 30, "copy, append", "bold"),
        text(470, 30, "identity, append", "bold"),
        text(640, 30, "identity, interleave", "bold"),
    ]
    columns: list[tuple[int, list[tuple[str, str]]]] = [
        (50, [("block 0", "old"), ("block 1", "old")]),
        (240, [("block 0", "old"), ("block 1", "old"), ("copy of 0", "new"), ("copy of 1", "new")]),
        (410, [("block 0", "old"), ("block 1", "old"), ("0, writes 0", "zero"), ("1, writes 0", "zero")]),
        (580, [("block 0", "old"), ("0, writes 0", "zero"), ("block 1", "old"), ("1, writes 0", "zero")]),
    ]
    for x, blocks in columns:
        for number, (said, kind) in enumerate(blocks):
            y = 214 - number * 50
            parts.append(box(x, y, 120, 34, kind, said))
            if number:
                parts.append(arrow(x + 60, y + 50, x + 60, y + 37))
    parts += [
        text(110, 282, "reads upwards", "small"),
        text(300, 282, "loss jumps, recovers", "small"),
        text(300, 300, "moments copied", "small"),
        text(555, 282, "the function stays, up to rounding", "small"),
        text(555, 300, "moments of the new blocks start at step 0", "small"),
    ]
    return svg(740, 318, "Stacking blocks as copies or as identities", parts)


def phases() -> str:
    """A run: size over steps, with operations between phases."""
    left, bottom = 60, 210
    parts = [
        f'<path class="axis" d="M{left} 40 V{bottom} H710"/>',
        text(left - 8, 34, "parameters", "small", "start"),
        text(706, bottom - 8, "optimizer steps", "small", "end"),
        f'<path class="curve" d="M{left} 185 H240 V130 H420 V80 H700"/>',
    ]
    for x, name in ((240, "stack_layers"), (420, "widen_mlp"), (560, "freeze_layer")):
        parts += [
            f'<line class="mark" x1="{x}" y1="52" x2="{x}" y2="{bottom}"/>',
            text(x + 6, 62, name, "mono small", "start"),
        ]
    for middle, said in ((150, "phase 0"), (330, "phase 1"), (490, "phase 2"), (635, "phase 3")):
        parts.append(text(middle, bottom + 20, said, "small"))
    parts.append(
        text(
            370, 270, "An operation lies between two optimizer steps. What lies between two operations is a phase.", ""
        )
    )
    return svg(740, 290, "A run, phase by phase", parts)


def trap() -> str:
    """How large a new tensor's first update is, by its count of steps."""
    rows = [
        ("old count, β₂ = 0.999", 6.6, "warm"),
        ("old count, β₂ = 0.99", 2.1, "warm"),
        ("old count, β₂ = 0.95", 1.1, "warm"),
        ("a count of its own, from 0", 1.0, "new"),
    ]
    parts = [text(370, 30, "largest of the first updates of a new tensor, in learning rates", "bold")]
    for number, (said, size, kind) in enumerate(rows):
        y = 50 + number * 40
        parts += [
            text(230, y + 19, said, "", "end"),
            box(244, y, size * 66, 28, kind),
            text(254 + size * 66, y + 19, f"{size:g}", "", "start"),
        ]
    return svg(740, 224, "First updates under an old count of steps are up to 6.6 times too large", parts)


PICTURES = {"lineage": lineage, "widening": widening, "stacking": stacking, "phases": phases, "trap": trap}
"""File in `docs/pictures` -> what draws it."""
