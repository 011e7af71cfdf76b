"""What counts as an improvement."""

from __future__ import annotations

import math

import pytest

from morphing_trainer.run.patience import Patience


def after(values: list[float], *, greater: bool = False, threshold: float = 0.0) -> Patience:
    patience = Patience()
    for step, value in enumerate(values, 1):
        patience = patience.after(value, step, greater=greater, threshold=threshold)
    return patience


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([5.0], {}, (5.0, 0)),
        ([5.0, 4.0, 4.5, 4.0], {}, (4.0, 2)),
        ([5.0, 4.0, 4.5, 3.9], {}, (3.9, 0)),
        ([5.0, 6.0, 5.5], {"greater": True}, (6.0, 1)),
        ([5.0, 4.9, 4.8], {"threshold": 0.5}, (5.0, 2)),
        ([5.0, 4.8, 4.6, 4.4], {"threshold": 0.5}, (4.4, 0)),  # small steps add up
        ([5.0, math.nan, -math.inf], {}, (5.0, 2)),
        ([math.nan, 5.0], {}, (5.0, 0)),
        ([math.nan], {}, (None, 1)),
    ],
)
def test_after(values: list[float], options: dict[str, object], expected: tuple[float | None, int]) -> None:
    found = after(values, **options)  # type: ignore[arg-type]
    assert (found.best, found.stale, found.at) == (*expected, len(values))
    assert found.after(-100.0, len(values), greater=False, threshold=0.0) == found, "the same step again"
    assert Patience.from_dict(found.to_dict()) == found
