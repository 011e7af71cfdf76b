"""What is bad in a step, and when it is known."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.allocations import Meter
from morphing_trainer.run.finite import GRADIENT, LOSS, Finite, all_finite, what

CPU = torch.device("cpu")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_on_the_cpu_at_once(value: float) -> None:
    finite = Finite(CPU)
    finite.begin()
    finite.loss(torch.tensor(1.0))
    finite.gradient(torch.tensor(2.0))
    assert finite.now() == finite.end(1) == 0
    finite.begin()
    finite.loss(torch.tensor(value))
    finite.loss(torch.tensor(1.0))  # of the next micro-batch
    finite.gradient(3.0)
    assert finite.now() == LOSS
    assert (finite.end(2), finite.step, finite.is_behind) == (LOSS, 2, False)
    finite.begin()
    finite.gradient(torch.tensor(value))
    assert finite.end(3, counts=False) == 0
    assert finite.end(3) == GRADIENT


@pytest.mark.parametrize("device", ["cpu", "meta"])  # one whose numbers are at hand, and one whose are not
def test_a_loss_in_a_list_of_one(device: str) -> None:
    finite = Finite(torch.device(device))
    finite.begin()
    finite.loss(torch.ones(1, device=device))
    finite.gradient(torch.ones(1, device=device))


def test_of_many_ranks() -> None:
    assert what(LOSS * 5000) == "loss"
    assert what(GRADIENT * 5000) == "gradient"
    assert what(LOSS * 3 + GRADIENT * 5000) == "loss or gradient"
    assert what(0) == ""


@pytest.mark.gpu
def test_on_a_gpu_one_step_later() -> None:
    device = torch.device("cuda")
    finite = Finite(device)
    for step in range(1, 4):
        finite.begin()
        finite.loss(torch.tensor(math.nan if step == 2 else 1.0, device=device))
        finite.gradient(torch.tensor(1.0, device=device))
        assert finite.end(step) == (LOSS if step == 3 else 0)
        assert finite.is_behind
    assert finite.step == 2
    assert finite.catch_up() == 0
    assert (finite.step, finite.is_behind) == (3, False)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_of_a_whole_tensor(kind: torch.dtype, value: float) -> None:
    tensor = torch.randn(70, 50, generator=torch.Generator().manual_seed(0)).to(kind)
    assert all_finite(tensor) and all_finite(tensor.T) and all_finite(tensor[:0]) and all_finite(tensor[0, 0])
    tensor[33, 17] = value
    assert not all_finite(tensor) and not all_finite(tensor.T) and not all_finite(tensor[33, 17])


def test_large_numbers_are_finite() -> None:
    """Their sum is not."""
    assert all_finite(torch.full((1000,), 3e38))


def test_looking_takes_no_memory() -> None:
    """A tensor may be most of what fits into memory."""
    tensor, meter = torch.zeros(1 << 20), Meter()
    with meter.measuring():
        meter.mark("begin")
        assert all_finite(tensor)
        meter.mark("looking")
    assert meter.spans["looking"].peak < 1 << 16
