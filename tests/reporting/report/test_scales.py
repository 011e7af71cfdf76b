"""Scales and ticks, against numbers computed by hand; and points thinned out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morphing_trainer.reporting.report.lanes import GAP, labels
from morphing_trainer.reporting.report.scales import Scale, decimals, linear_ticks, log_ticks, scale_of
from morphing_trainer.reporting.report.thinning import thinned


def test_places_on_a_scale() -> None:
    assert [Scale(2.0, 6.0).at(value) for value in (2, 3, 6, 1, 7)] == [0.0, 0.25, 1.0, 0.0, 1.0]
    logs = Scale(1.0, 100.0, log=True)
    assert [logs.at(value) for value in (1, 10, 100, 0, -1, 1e9)] == pytest.approx([0.0, 0.5, 1.0, 0.0, 0.0, 1.0])
    assert Scale(-1e308, 1e308).at(0.0) == 0.5, "as wide as floats go"


def test_a_scale_has_room_for_all_finite_values() -> None:
    assert scale_of([1.0, 3.0, math.nan, math.inf]) == Scale(0.9, 3.1)
    assert scale_of([1.0, 3.0], zero=True) == Scale(0.0, 3.1)
    assert scale_of([-1.0, 3.0], zero=True) == Scale(-1.2, 3.2), "nothing is cut off"
    assert scale_of([2.0]) == Scale(1.8, 2.2) and scale_of([0.0]) == Scale(-1.0, 1.0)
    assert scale_of([]) == scale_of([math.nan]) == Scale(0.0, 1.0)
    logs = scale_of([0.0, 1.0, 100.0], log=True)
    assert (logs.low, logs.high) == pytest.approx((10**-0.1, 10**2.1))
    assert scale_of([-1.0], log=True).low > 0


def test_ticks_are_round_and_few() -> None:
    assert linear_ticks(0.0, 10.0, 5) == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert linear_ticks(0.0, 600.0, 8, whole=True) == [0.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0]
    assert linear_ticks(0.0, 10.0, 4) == [0.0, 2.5, 5.0, 7.5, 10.0]
    assert linear_ticks(0.0, 10.0, 4, whole=True) == [0.0, 5.0, 10.0], "no half steps"
    assert linear_ticks(0.0, 1.0, 8, whole=True) == [0.0, 1.0]
    assert linear_ticks(4.1, 7.9, 7) == [5.0, 6.0, 7.0]
    assert linear_ticks(3.0, 3.0) == [3.0]
    assert log_ticks(1.0, 1000.0, 4) == [1.0, 10.0, 100.0, 1000.0]
    assert log_ticks(0.9, 11.0, 4) == [1.0, 2.0, 5.0, 10.0]
    assert log_ticks(1e-300, 1e300, 5)[1] / log_ticks(1e-300, 1e300, 5)[0] == pytest.approx(1e121)
    assert Scale(4.0, 4.4, log=True).ticks(6) == pytest.approx([4.0, 4.1, 4.2, 4.3, 4.4]), "within a decade: plain ones"


def test_as_many_decimals_as_tell_ticks_apart() -> None:
    assert decimals([0.0, 2.0, 4.0]) == 0
    assert decimals([7.0, 7.5, 8.0]) == 1
    assert decimals([0.0, 0.25, 0.5]) == 2
    assert decimals([0.001, 0.002]) == 3
    assert decimals([0.0, 2.5]) == 1
    assert decimals([5.0]) == 3


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 12))
def test_ticks_lie_within_the_scale(low: float, wide: float, most: int) -> None:
    found = Scale(low, low + wide).ticks(most)
    assert all(low - 1e-6 * wide <= tick <= low + wide * 1.000001 for tick in found)
    assert len(found) <= most + 1


def test_thinning_keeps_what_is_seen() -> None:
    points = [(float(x), 0.0) for x in range(100_000)]
    points[777], points[50_001], points[60_000] = (777.0, 9.0), (50_001.0, -9.0), (60_000.0, math.nan)
    kept = thinned(points, 200)
    assert len(kept) <= 200 and kept == sorted(kept, key=lambda point: point[0])
    assert {(777.0, 9.0), (50_001.0, -9.0), points[0], points[-1]} <= set(kept)
    assert any(math.isnan(value) for _, value in kept)
    assert thinned(points[:200], 200) == points[:200]
    assert len(thinned([(1.0, float(x)) for x in range(1000)], 100)) <= 5, "all at one step"


@given(st.lists(st.floats(0, 1), max_size=400).map(sorted), st.sampled_from([60.0, 270.0, 640.0]))
def test_labels_tell_every_operation_once_and_none_covers_another(places: list[float], width: float) -> None:
    found = labels(places, width)
    assert [number for label in found for number in range(label.first, label.last + 1)] == list(range(len(places)))
    boxes = [
        (label.row, label.share * width - label.width / 2, label.share * width + label.width / 2) for label in found
    ]
    for i, (row, left, right) in enumerate(boxes):
        assert left >= -1e-6 and (right <= width + 1e-6 or right - left > width)
        for other, start, end in boxes[:i]:
            assert other != row or start >= right + GAP - 1e-6 or end <= left - GAP + 1e-6


def test_labels_stand_over_their_place_where_there_is_room() -> None:
    first, second, third = labels([0.25, 0.5, 0.51], 640.0)
    assert (first.text, first.row, first.share) == ("1", 0, 0.25)
    assert (second.row, third.row) == (0, 1), "the next row, where it would cover its neighbour"
    assert [label.text for label in labels([0.5] * 5, 640.0)] == ["1", "2", "3\u20135"]
    assert labels([0.0], 640.0)[0].share > 0, "not cut off at the edge"
