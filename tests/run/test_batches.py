"""The batch in two numbers, and what becomes of it under operations and other numbers of processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from morphing_trainer.errors import ConfigError
from morphing_trainer.operations import OPERATIONS
from morphing_trainer.run.batches import Batches, settled, split
from morphing_trainer.settings import Settings


@pytest.mark.parametrize(
    ("batch", "mini", "processes", "expected"),
    [
        (8, None, 1, Batches(8, 1, None)),
        (8, 4, 1, Batches(4, 2, None)),
        (8, 8, 1, Batches(8, 1, None)),
        (8, 100, 1, Batches(8, 1, None)),
        (10, 4, 1, Batches(4, 3, 10)),  # 4 + 4 + 2
        (1, None, 1, Batches(1, 1, None)),
        (8, None, 2, Batches(4, 1, None)),
        (8, 2, 2, Batches(2, 2, None)),
        (10, 2, 2, Batches(2, 3, 10)),  # (2 + 2) + (2 + 2) + (1 + 1)
        (10, None, 4, Batches(3, 1, 10)),  # 3 + 3 + 2 + 2
        (7, 2, 3, Batches(2, 2, 7)),
    ],
)
def test_split(batch: int, mini: int | None, processes: int, expected: Batches) -> None:
    found = split(batch, mini, processes)
    assert found == expected
    assert found.per_device * found.grad_accum * processes >= batch
    assert found.per_device * (found.grad_accum - 1) * processes < batch


def test_fewer_samples_than_processes() -> None:
    with pytest.raises(ConfigError, match=r"batch_size: 3 samples .* give at least 4"):
        split(3, None, 4)


UNEVEN = Settings(
    1e-3, batch_size=4, grad_accum=3, warmup_steps=0, eval_iters=None, eval_interval=None, step_samples=10
)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("change_batch_size", 2.0, (8, 3, 20)),  # 8 + 8 + 4
        ("change_batch_size", 1.6, (6, 3, 16)),
        ("change_batch_size", 0.5, (2, 3, 5)),
        ("change_grad_accum", 2.0, (4, 5, None)),  # 20
        ("change_grad_accum", 1.5, (4, 4, 15)),
        ("change_grad_accum", 0.01, (4, 1, 1)),
        ("set_batch_size", 5, (5, 3, None)),
        ("set_batch_size_relative", 0.5, (8, 3, None)),
        ("set_grad_accum", 2, (4, 2, None)),
    ],
)
def test_operations(name: str, value: Any, expected: tuple[int, int, int | None]) -> None:
    operation: Any = OPERATIONS[name](name=name, value=value)
    new = settled(operation.update(UNEVEN, 1), 1)
    assert (new.batch_size, new.grad_accum, new.step_samples) == expected


def test_settled_keeps_the_samples_of_a_step() -> None:
    assert settled(UNEVEN, 1) is not None
    assert settled(UNEVEN, 1).grad_accum == 3
    assert settled(UNEVEN, 2).grad_accum == 2
    half = settled(replace(UNEVEN, batch_size=2), 1)
    assert (half.grad_accum, half.step_samples) == (5, None), "what fits now is even"
    even = replace(UNEVEN, step_samples=None)
    assert settled(even, 7) is even
