"""The largest batch that fits, with a memory that is a formula."""

from __future__ import annotations

import pytest

from morphing_trainer.errors import OperationError
from morphing_trainer.memory.finding import Found, largest_batch


class Linear:
    """A memory of which a batch takes `fixed` and `each` percent per sample; above `end` it has run out."""

    def __init__(self, fixed: float, each: float, samples: int = 10_000, end: float = 100) -> None:
        self.fixed, self.each, self.samples, self.end = fixed, each, samples, end
        self.tried: list[int] = []

    def __call__(self, batch: int) -> float | None:
        self.tried.append(batch)
        percent = self.fixed + self.each * batch
        return percent if percent <= self.end else None


@pytest.mark.parametrize(
    ("probe", "target", "limit", "batch"),
    [
        pytest.param(Linear(10, 0.05), 82, 1024, 1024, id="the limit"),
        pytest.param(Linear(10, 0.05), 82, 1000, 1000, id="a limit that is no power of two"),
        pytest.param(Linear(10, 0.05), 82, 1001, 1000, id="a limit that is no multiple"),
        pytest.param(Linear(10, 0.05, samples=60), 82, 1024, 56, id="the samples there are"),
        pytest.param(Linear(10, 0.5), 82, 1024, 128, id="144 fit, a power of two is nearly as large"),
        pytest.param(Linear(10, 0.65), 82, 1024, 104, id="110 fit, 64 would waste too much"),
        pytest.param(Linear(10, 0.5), 50, 1024, 64, id="80 under another target"),
        pytest.param(Linear(10, 3), 82, 1024, 24, id="few"),
        pytest.param(Linear(10, 5), 82, 1024, 8, id="no more than 8"),
        pytest.param(Linear(10, 0.5, end=34), 82, 1024, 48, id="out of memory before the target"),
        pytest.param(Linear(81, 0.125), 82, 1024, 8, id="on the edge"),
    ],
)
def test_the_largest_that_fits(probe: Linear, target: float, limit: int, batch: int) -> None:
    found = largest_batch(probe, target, limit)
    assert found == Found(batch, probe.fixed + probe.each * batch)
    assert found.percent <= target
    assert len(probe.tried) == len(set(probe.tried)), "each is tried once"
    assert all(size % 8 == 0 and size <= min(limit, probe.samples) for size in probe.tried)


def test_what_would_need_more_than_there_is_is_not_tried() -> None:
    """On a CPU the system would end the process, not raise an error."""
    probe = Linear(10, 1, end=1e9)
    assert largest_batch(probe, 90, 1024).batch == 64  # 80 is taken for a power of two
    assert max(probe.tried) < 90 + 8
    assert 128 not in probe.tried


@pytest.mark.parametrize(
    ("probe", "match"),
    [
        (Linear(85, 1), "not even a batch of 8 fits: it takes 93 % of memory, above the target 82 %"),
        (Linear(95, 1), "not even a batch of 8 fits: it runs out of memory"),
        (Linear(1, 1, samples=7), "a device has 7 samples at most; use set_batch_size"),
    ],
)
def test_where_nothing_fits(probe: Linear, match: str) -> None:
    with pytest.raises(OperationError, match=match):
        largest_batch(probe, 82, 1024)
