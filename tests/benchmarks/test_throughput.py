"""The comparison itself: everybody trains the same. How fast they are is no business of tests."""

from __future__ import annotations

import pytest

from benchmarks.throughput import CONTESTANTS, FEWEST, around_median, compare, main, sizes


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_all_train_the_same(bf16: bool) -> None:
    speeds = compare(sizes()["2x32"], steps=12, rounds=1, warm_up=2, bf16=bf16, compiled=False)
    assert {kind: len(found) for kind, found in speeds.items()} == dict.fromkeys(CONTESTANTS, 1)
    assert all(speed > 0 for found in speeds.values() for speed in found)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (3, 1), (FEWEST, 1), (10, 2), (40, 14), (100, 40)])
def test_the_interval_around_a_median(count: int, expected: int) -> None:
    """As tables of the sign test have it: from the so-many-th value to the so-many-th from the other end."""
    values = [float(value) for value in range(count)]
    assert around_median(values[::-1]) == (expected - 1, count - expected)


def test_a_run_of_nothing_but_warm_up_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["throughput", "--steps", "8"])
    with pytest.raises(SystemExit):
        main()
    assert "--steps: must be above --warm_up, 10, is 8" in capsys.readouterr().err
