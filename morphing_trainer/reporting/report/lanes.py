"""Labels of operations above a picture: numbers in as few rows as keep them apart, near ones as one label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PER_CHARACTER, PADDING, GAP = 7.2, 10.0, 3.0
"""Of a label, in pixels."""
MOST_ROWS = 3


@dataclass(frozen=True)
class Label:
    """Of the operations `first` to `last` (from 0) in row `row`; `share`: of its middle, 0 to 1 of the width."""

    first: int
    last: int
    row: int
    share: float
    width: float

    @property
    def text(self) -> str:
        return str(self.first + 1) if self.first == self.last else f"{self.first + 1}\u2013{self.last + 1}"


def labels(places: Sequence[float], width: float, rows: int = MOST_ROWS) -> list[Label]:
    """Labels for operations at `places` (0 to 1, rising), in a picture of `width` pixels: none covers another.

    Where the rows do not suffice, neighbours share a label.
    """
    groups = [(number, number) for number in range(len(places))]
    if len(groups) * (PER_CHARACTER + PADDING) > 3 * rows * width:  # far too many: begin with those that share a place
        groups = _by_place(places, max(1, int(width / 12)))
    while True:
        found = _placed(places, groups, width, rows)
        clash = next((number for number, label in enumerate(found) if label is None), None)
        if clash is None:
            return [label for label in found if label is not None]
        groups[clash - 1 : clash + 1] = [(groups[clash - 1][0], groups[clash][1])]


def _placed(places: Sequence[float], groups: Sequence[tuple[int, int]], width: float, rows: int) -> list[Label | None]:
    """A label for each group until one finds no room, which is the None at the end. The first always does."""
    ends = [-1e9] * rows
    found: list[Label | None] = []
    for first, last in groups:
        label = Label(first, last, 0, 0.0, 0.0)
        wide = PER_CHARACTER * len(label.text) + PADDING
        middle = width * (places[first] + places[last]) / 2
        middle = min(max(middle, wide / 2), max(wide / 2, width - wide / 2))
        row = next((row for row in range(rows) if ends[row] + GAP <= middle - wide / 2), None)
        if row is None:
            return [*found, None]
        ends[row] = middle + wide / 2
        found.append(Label(first, last, row, middle / width, wide))
    return found


def _by_place(places: Sequence[float], parts: int) -> list[tuple[int, int]]:
    groups: list[tuple[int, int]] = []
    before = -1
    for number, place in enumerate(places):
        part = min(parts - 1, int(place * parts))
        if part == before:
            groups[-1] = (groups[-1][0], number)
        else:
            groups.append((number, number))
        before = part
    return groups
