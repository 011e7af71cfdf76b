"""The comparison itself: everybody trains the same. How fast they are is no business of tests."""

from __future__ import annotations

import pytest

from benchmarks.throughput import CONTESTANTS, compare, sizes


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_all_train_the_same(bf16: bool) -> None:
    speeds = compare(sizes()["2x32"], steps=12, rounds=1, warm_up=2, bf16=bf16, compiled=False)
    assert {kind: len(found) for kind, found in speeds.items()} == dict.fromkeys(CONTESTANTS, 1)
    assert all(speed > 0 for found in speeds.values() for speed in found)
