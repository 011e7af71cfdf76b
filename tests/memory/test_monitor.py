"""Readings of memory and processor."""

from __future__ import annotations

import psutil
import pytest
import torch

from morphing_trainer.memory.monitor import Device, Monitor, Pressure, Usage, over_ranks, read_usage
from morphing_trainer.memory.system import GIB, Amount

CPU = torch.device("cpu")
PLAIN = Usage(int(1.2 * GIB), Amount(6 * GIB, 24 * GIB), 97.4)
WITH_DEVICE = Usage(
    int(1.2 * GIB), Amount(6 * GIB, 24 * GIB), 12.0, Device(10 * GIB, 20 * GIB, int(75.2 * GIB), 80 * GIB)
)


def test_this_process() -> None:
    read_usage(CPU)
    filled = torch.ones(64 * 2**20, dtype=torch.uint8)  # kept
    found = read_usage(CPU)
    assert 64 * 2**20 < found.process < psutil.virtual_memory().total
    assert found.process == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert 0 <= found.cpu_percent <= 100
    assert found.device is None
    assert found.pressure == found.system.percent
    del filled


def test_figures() -> None:
    assert PLAIN.figures() == {"memory/process_gib": 1.2, "memory/system_percent": 25.0, "cpu_percent": 97.4} | {
        "memory/process_gib": pytest.approx(1.2)
    }
    found = WITH_DEVICE.figures()
    assert found["memory/device_gib"] == 10
    assert found["memory/device_reserved_gib"] == 20
    assert found["memory/device_peak_gib"] == pytest.approx(75.2)


def test_shown_is_short() -> None:
    assert PLAIN.shown() == [("mem", "1.2/24 GiB"), ("cpu", "97%")]
    assert WITH_DEVICE.shown() == [("mem", "10.0/80 GiB"), ("ram", "1.2/24 GiB"), ("cpu", "12%")]


def test_pressure_is_of_what_is_scarcer() -> None:
    assert PLAIN.pressure == 25
    assert WITH_DEVICE.pressure == pytest.approx(94)


def test_readings_are_not_taken_too_often() -> None:
    moments, taken = iter([0.0, 0.5, 0.99, 1.0, 1.5, 1.6]), []

    def read(device: torch.device) -> Usage:
        taken.append(device)
        return PLAIN

    monitor = Monitor(CPU, read, lambda: next(moments))
    for expected in (1, 1, 1, 2, 2):
        monitor.latest()
        assert len(taken) == expected
    monitor.latest(0)
    assert len(taken) == 3


def test_the_most_on_any_rank() -> None:
    names = ["memory/process_gib", "cpu_percent"]
    assert over_ranks(names, [[1, 90]]) == {"memory/process_gib": 1, "cpu_percent": 90}
    assert over_ranks(names, [[1, 90], [3, 80]]) == {
        "memory/process_gib": 3,
        "cpu_percent": 90,
        "memory/process_gib/rank_0": 1,
        "memory/process_gib/rank_1": 3,
    }
    names.append("memory/device_peak_gib")
    assert over_ranks(names, [[1, 90, 7], [3, 80, 5]])["memory/device_peak_gib/rank_0"] == 7


def test_pressure_tells_once_of_every_rise() -> None:
    pressure = Pressure(90)
    told = [pressure.rises(percent) for percent in (10, 89.9, 90, 95, 89, 91, 88.1, 90, 87.9, 90, 99)]
    assert told == [False, False, True, False, False, False, False, False, False, True, False]


@pytest.mark.parametrize("threshold", [0, None])
def test_pressure_can_be_off(threshold: float | None) -> None:
    assert not Pressure(threshold).rises(100)


@pytest.mark.gpu
def test_a_device() -> None:
    device = torch.device("cuda", 0)
    torch.cuda.reset_peak_memory_stats(device)
    before = read_usage(device).device
    filled = torch.ones(64 * 2**20, dtype=torch.uint8, device=device)
    after = read_usage(device).device
    assert before is not None and after is not None
    assert after.allocated - before.allocated >= filled.numel()
    assert after.peak >= after.allocated <= after.reserved <= after.total
