"""The picture of a network: its blocks from the input upwards, all phases of a run on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup

from morphing_trainer.reporting.report.network import HELD, PARTLY, TRAINED, Network, Part, together
from morphing_trainer.reporting.report.text import cut, el, fnum

WIDTH, TALL = 200.0, 150.0
"""Of a picture, and of the highest stack of blocks, in pixels."""
_MARGIN, _GAP, _BAR = 6.0, 3.0, 9.0
_MOST_ROWS = 60
_LEAST = 3.0
"""Pixels of the narrowest part, and of the lowest block that is drawn by itself."""
_WORDS = {TRAINED: "trained", PARTLY: "trained in part", HELD: "not trained"}


def pictures(networks: Sequence[Network | None]) -> list[Markup | None]:
    """A picture for each, as large as the others show it to be."""
    known = [network for network in networks if network is not None]
    if not known:
        return [None for _ in networks]
    room = WIDTH - 2 * _MARGIN - 2 * _GAP
    unit = min(
        room / (max(network.hidden for network in known) + max(network.mlp for network in known)),
        room / max(network.hidden for network in known),
    )
    deepest = max(len(network.layers) for network in known)
    row = min(16.0, TALL / deepest)
    spine = _MARGIN + unit * max(network.hidden for network in known) + _GAP
    height = row * deepest + 4 * _BAR + 4 * _GAP + 2
    return [None if network is None else _picture(network, unit, row, spine, height) for network in networks]


def _picture(network: Network, unit: float, row: float, spine: float, height: float) -> Markup:
    floor = height - 1
    parts: list[Any] = [el("title", in_words(network))]
    top = floor - 2 * (_BAR + _GAP) - row * len(network.layers) - _GAP - _BAR
    parts.append(el("line", x1=spine, x2=spine, y1=floor, y2=top, class_="spine"))
    for number, part in enumerate((network.positions, network.tokens)):
        y = floor - _BAR - number * (_BAR + 1)
        parts += _bar(part, spine - unit * network.hidden / 2, y, unit * network.hidden, _BAR, unit, "embedding")
    base = floor - 2 * (_BAR + _GAP)
    for state, first, many in _rows(network.layers, row):
        y = base - row * (first + many)
        high = row * many - min(2.0, row * 0.25)
        attention, mlp = state
        wide = max(_LEAST, unit * network.hidden)
        parts += _bar(attention, spine - _GAP - wide, y, wide, high, unit, "attention", from_right=True)
        parts += _bar(mlp, spine + _GAP, y, max(_LEAST, unit * network.mlp), high, unit, "mlp")
    head, look = (network.head, "head") if network.head else (Part(), "head tied")
    parts += _bar(head, spine - unit * network.hidden / 2, top, unit * network.hidden, _BAR, unit, look)
    box = f"0 0 {fnum(WIDTH)} {fnum(height)}"
    return el("svg", *parts, viewBox=box, class_="network", role="img", aria_label=in_words(network))


def _rows(layers: Sequence[tuple[Part, Part]], row: float) -> list[tuple[tuple[Part, Part], int, int]]:
    """(state, first layer, layers) of what is drawn as one: single layers, or alike ones where they are too thin."""
    if row >= _LEAST:
        return [(state, number, 1) for number, state in enumerate(layers)]
    if sum(1 for _ in groupby(layers)) > _MOST_ROWS:
        size = -(-len(layers) // _MOST_ROWS)
        groups = [layers[first : first + size] for first in range(0, len(layers), size)]
        runs = [((together([a for a, _ in group]), together([b for _, b in group])), len(group)) for group in groups]
    else:
        runs = [(state, len(list(alike))) for state, alike in groupby(layers)]
    found, first = [], 0
    for state, many in runs:
        found.append((state, first, many))
        first += many
    return found


def _bar(
    part: Part, x: float, y: float, wide: float, high: float, unit: float, look: str, *, from_right: bool = False
) -> list[Markup]:
    """A part's own weights, and its adapter in it, along the middle line."""
    wide = max(_LEAST, wide)
    place = {"y": fnum(y), "height": fnum(max(0.2, high)), "rx": "1.5"}
    found = [el("rect", x=fnum(x), width=fnum(wide), class_=f"part {look} {part.state}", **place)]
    if part.rank:
        rank = min(wide, max(4.0, unit * part.rank))
        at = x + wide - rank if from_right else x
        found.append(el("rect", x=fnum(at), width=fnum(rank), class_="part adapter", **place))
    return found


def in_words(network: Network) -> str:
    """What the picture shows."""
    blocks = "1 block" if len(network.layers) == 1 else f"{len(network.layers)} blocks"
    said = [f"{blocks}, {network.hidden} wide, MLP {network.mlp}"]
    said += _told("attention", [attention for attention, _ in network.layers])
    said += _told("MLP", [mlp for _, mlp in network.layers])
    said += _told("token embedding", [network.tokens]) + _told("positions", [network.positions])
    said += _told("output head", [network.head]) if network.head else ["output head is the token embedding"]
    return cut("; ".join(said), 600)


def _told(name: str, parts: Sequence[Part]) -> list[str]:
    """`attention of blocks 0-3 not trained, LoRA rank 8`; nothing of what is trained as it is."""
    found, first = [], 0
    for part, alike in groupby(parts):
        last = first + len(list(alike)) - 1
        if part != Part():
            where = f" of block {first}" if first == last else f" of blocks {first}\u2013{last}"
            where = "" if len(parts) == 1 and name not in ("attention", "MLP") else where
            rank = f", LoRA rank {part.rank}" if part.rank else ""
            found.append(f"{name}{where} {_WORDS[part.state]}{rank}")
        first = last + 1
    return found
