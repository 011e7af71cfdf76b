from __future__ import annotations

from typing import Any

import pytest

from morphing_trainer.reporting.undone import undone_lines

EVENT: dict[str, Any] = {
    "operation": "change_lr",
    "step": 4,
    "until": 7,
    "before": 3.69191,
    "loss": 20.8121,
    "limit": 3.69191,
    "reason": "",
}


def test_nothing_was_undone() -> None:
    assert undone_lines([]) == []


def test_one_and_several() -> None:
    assert undone_lines([EVENT]) == [
        "1 operation undone by its guard",
        "step 4: change_lr: evaluation loss 3.692 before it, 20.81 at step 7, at most 3.692 allowed",
    ]
    why = "the gradient of step 6 is NaN or infinite"
    assert undone_lines([EVENT, {**EVENT, "loss": None, "reason": why}])[::2] == [
        "2 operations undone by their guards",
        f"step 4: change_lr: {why}",
    ]


@pytest.mark.parametrize("loss", ["nan", float("nan")])
def test_losses_that_are_no_numbers(loss: Any) -> None:
    """The journal has them as text."""
    assert "NaN at step 7" in undone_lines([{**EVENT, "loss": loss}])[1]


@pytest.mark.parametrize("harm", [{"loss": [1]}, {"before": "low"}, {"limit": None}, {"operation": "a\x1b[2Jb"}])
def test_a_journal_that_somebody_has_changed(harm: dict[str, Any]) -> None:
    (_, line) = undone_lines([{**EVENT, **harm}])
    assert line.startswith("step 4: ") and line.isprintable()
