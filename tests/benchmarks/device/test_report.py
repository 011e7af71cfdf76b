"""What a report says of its figures."""

from __future__ import annotations

import json

import pytest

from benchmarks.device.budget import Account, Figures
from benchmarks.device.contest import BARE, OURS, TRAINER
from benchmarks.device.goals import goals
from benchmarks.device.peaks import known_peak
from benchmarks.device.report import Place, as_data, markdown
from tests.benchmarks.device.pages import cells


def place(peak: float | None = None, tiny: bool = False) -> Place:
    return Place("some GPU", 80 * 10**9, peak, "", {"torch": "2"}, "python -m benchmarks.gpu", tiny)


def runs(model: str = "GPT-2 small", mode: str = "compiled", **speeds: float) -> list[Figures]:
    """One round; speeds in tokens per second of `bare`, `trainer`, `ours`."""
    kinds = {"bare": BARE, "trainer": TRAINER, "ours": OURS}
    common = {"table": "speed", "model": model, "mode": mode, "batch": 8, "length": 1024, "round": 0, "steps": 60}
    return [
        {**common, "kind": kinds[name], "tokens_per_s": speed, "peak_bytes": 10**9, "losses": [1.0] * 6}
        | {"flops_per_token": 1e9}
        for name, speed in speeds.items()
    ]


@pytest.mark.parametrize(
    ("peak", "ours", "verdicts"),
    [
        (989.5, 5e5, ["met"] * 5),  # 50.5 %
        (989.5, 4.9e5, ["not met", "met", "not met", "met", "met"]),
        (989.5, 4.976e5, ["met"] * 5),  # 0.9952 is 1.00 by two digits
        (312, 5e5, ["a smaller card", "met", "met", "met", "met"]),
        (None, 4e5, ["unknown: say --peak", "met", "not met", "not met", "met"]),
    ],
)
def test_goals(peak: float | None, ours: float, verdicts: list[str]) -> None:
    figures = runs(bare=5e5, trainer=5e5, ours=ours)
    assert [goal.verdict for goal in goals(figures, peak)] == verdicts
    page = markdown(Account(figures), place(peak), 1)
    assert [row[3] for row in cells(page, "Goals")[1:]] == verdicts
    told = "-" if peak is None else f"{100 * ours * 1e9 / (peak * 1e12):.1f} %"
    assert cells(page, "Speed")[3][5] == told


def test_a_goal_is_of_what_was_measured_only() -> None:
    nothing = {"tokens_per_s": None, "peak_bytes": None, "losses": None}
    failed = [{**each, **nothing, "failed": "OutOfMemoryError"} for each in runs(trainer=1.0)]
    figures = [*runs(bare=5e5, ours=5e5), *failed]
    verdicts = ["met", "not measured", "not measured", "met", "not measured"]
    assert [goal.verdict for goal in goals(figures, 989.5)] == verdicts
    page = markdown(Account(figures, ["b: too long"], ["a: broke"]), place(989.5), 1)
    assert cells(page, "Speed")[2][4] == "failed: OutOfMemoryError"
    assert "## Failed\n\n- a: broke" in page and "## Left out\n\n- b: too long" in page
    assert json.loads(json.dumps(as_data(Account(figures), place(), 1)))["figures"] == figures


def test_what_has_not_trained_the_same_is_told() -> None:
    figures = runs(bare=5e5, trainer=5e5, ours=5e5)
    figures[2]["losses"] = [1.0, 1.0, 1.0, 1.02, 1.0, 1.0]
    (found,) = [goal for goal in goals(figures, 989.5) if "loss curves" in goal.name]
    assert (found.verdict, found.reached) == ("not met", "2.0e-02")


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("2 CPU cores, x86_64", None),
    ],
)
def test_peaks(name: str, peak: float | None) -> None:
    found = known_peak(name)
    assert (None if found is None else found[0]) == peak
