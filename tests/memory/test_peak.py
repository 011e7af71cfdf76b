"""The peak of memory, with real tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from morphing_trainer.memory.peak import peak_percent, process_peak, state_bytes_ahead
from morphing_trainer.memory.system import Amount

CPU = torch.device("cpu")
SIZE = 256 * 2**20
TOTAL = 100 * SIZE
EXACT = pytest.mark.skipif(sys.platform != "linux", reason="the peak can be set back on Linux")


def fill(size: int = SIZE) -> None:
    """Memory that is taken, used, and given back."""
    torch.ones(size, dtype=torch.uint8)


def taken(work: Callable[[], None], **options: Any) -> float:
    """Bytes in use at the peak, on a machine where others use nothing, in units of `SIZE`."""
    return peak_percent(work, CPU, machine=lambda: Amount(0, TOTAL), **options) * TOTAL / 100 / SIZE


@EXACT
def test_what_was_given_back_counts_and_a_peak_before_does_not() -> None:
    fill(2 * SIZE)
    assert taken(lambda: None) == pytest.approx(0, abs=0.05)
    assert taken(fill) == pytest.approx(1, abs=0.05)


@EXACT
def test_all_processes_of_the_machine_count_and_what_is_ahead() -> None:
    assert taken(fill, processes=3) == pytest.approx(3, abs=0.15)
    assert taken(fill, processes=2, ahead=SIZE) == pytest.approx(4, abs=0.1)


@EXACT
def test_what_others_use_counts() -> None:
    half = peak_percent(fill, CPU, machine=lambda: Amount(TOTAL // 2, TOTAL))
    assert half == pytest.approx(51, abs=0.1)
    assert 0 < peak_percent(fill, CPU) < 100


def test_the_peak_of_the_process() -> None:
    kept = torch.ones(SIZE, dtype=torch.uint8)
    assert process_peak() > kept.numel()


def test_errors_come_through() -> None:
    def fails() -> None:
        raise MemoryError("no more")

    with pytest.raises(MemoryError, match="no more"):
        peak_percent(fails, CPU)


@pytest.mark.parametrize(
    ("kind", "options", "share"),
    [(torch.optim.AdamW, {}, 2), (torch.optim.AdamW, {"amsgrad": True}, 3), (torch.optim.SGD, {"momentum": 0.9}, 1)],
)
def test_what_an_optimizer_will_remember(
    kind: type[torch.optim.Optimizer], options: dict[str, object], share: int
) -> None:
    model = nn.Sequential(nn.Linear(100, 50), nn.Linear(50, 10))
    optimizer = kind(model.parameters(), lr=0.1, **options)  # type: ignore[call-arg]
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert state_bytes_ahead(optimizer) == pytest.approx(share * size, rel=1e-3)
    model[0](torch.ones(1, 100)).sum().backward()
    optimizer.step()  # the second layer has no gradient, and no state yet
    rest = 4 * sum(parameter.numel() for parameter in model[1].parameters())
    assert state_bytes_ahead(optimizer) == pytest.approx(share * rest, rel=1e-3)
    assert state_bytes_ahead(torch.optim.SGD(model.parameters(), lr=0.1)) == 0


@pytest.mark.gpu
def test_on_a_device() -> None:
    device = torch.device("cuda", 0)
    total = torch.cuda.get_device_properties(device).total_memory

    def work() -> None:
        torch.ones(4 * SIZE, dtype=torch.uint8, device=device)

    grown = peak_percent(work, device) - peak_percent(lambda: None, device)
    assert grown * total / 100 == pytest.approx(4 * SIZE, rel=0.1)
