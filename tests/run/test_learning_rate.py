from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers.trainer_utils import SchedulerType

from morphing_trainer.errors import ConfigError
from morphing_trainer.run.learning_rate import STATEFUL, make_scheduler, scale_peaks, seek
from morphing_trainer.settings import Settings
from tests.support import arguments

KWARGS: dict[str, dict[str, Any]] = {
    "cosine_with_restarts": {"num_cycles": 2},
    "cosine_with_min_lr": {"min_lr": 1e-4},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-4},
    "warmup_stable_decay": {"num_decay_steps": 8},
    "polynomial": {"power": 2.0},
}
CLOSED = sorted({kind.value for kind in SchedulerType} - set(STATEFUL))
TOTAL = 40


def optimizer(*rates: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=rates[0])


def rates(built: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in built.param_groups]


def make(
    folder: Path, kind: str, built: torch.optim.Optimizer, position: int = 0, warmup: int = 5, anchor: int = 0
) -> LRScheduler:
    args = arguments(folder, lr_scheduler_type=kind, lr_scheduler_kwargs=KWARGS.get(kind, {}))
    return make_scheduler(args, built, Settings(0.1, 1, 1, warmup, None, None, anchor), TOTAL, position)


def stepped(scheduler: LRScheduler, built: torch.optim.Optimizer, steps: int) -> list[list[float]]:
    """The rates before each of `steps` optimizer steps, and after the last."""
    seen = [rates(built)]
    for _ in range(steps):
        built.step()
        scheduler.step()
        seen.append(rates(built))
    return seen


def test_every_type_is_known() -> None:
    assert set(STATEFUL) < {kind.value for kind in SchedulerType}
    assert len(CLOSED) >= 10


@pytest.mark.parametrize("options", [{}, {"num_decay_step": 8}])
def test_options_that_are_missing_or_unknown_are_named(tmp_path: Path, options: dict[str, Any]) -> None:
    args = arguments(tmp_path, lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs=options)
    with pytest.raises(ConfigError, match="lr_scheduler_kwargs: do not fit lr_scheduler_type warmup_stable_decay"):
        make_scheduler(args, optimizer(0.1), Settings(0.1, 1, 1, 5, None, None, 0), TOTAL, 0)


@pytest.mark.parametrize("kind", CLOSED)
def test_made_at_a_position_is_stepped_to_it(tmp_path: Path, kind: str) -> None:
    built = optimizer(0.1, 0.02)
    seen = stepped(make(tmp_path, kind, built), built, TOTAL)
    for position in (0, 1, 3, 5, 17, TOTAL):
        placed = optimizer(0.1, 0.02)
        scheduler = make(tmp_path, kind, placed, position)
        assert rates(placed) == seen[position]
        assert scheduler.get_last_lr() == seen[position]
        assert scheduler.last_epoch == position
        assert stepped(scheduler, placed, TOTAL - position) == seen[position:]


@pytest.mark.parametrize("kind", CLOSED)
def test_made_again_on_the_same_optimizer(tmp_path: Path, kind: str) -> None:
    """In the middle of a run the groups hold the rate of the moment; the peak must not be lost."""
    reference = optimizer(0.1)
    seen = stepped(make(tmp_path, kind, reference), reference, TOTAL)
    built = optimizer(0.1)
    stepped(make(tmp_path, kind, built), built, 13)
    again = make(tmp_path, kind, built, position=13)
    assert stepped(again, built, TOTAL - 13) == seen[13:]
    stepped(make(tmp_path, kind, built, position=0), built, 1)
    assert rates(built) == seen[1]


@pytest.mark.parametrize("kind", CLOSED)
def test_a_restart_ends_with_the_run(tmp_path: Path, kind: str) -> None:
    """Begun again at step 16 of 40, it is the schedule of a run of 24 steps."""
    built = optimizer(0.1)
    stepped(make(tmp_path, kind, built), built, 16)
    seen = stepped(make(tmp_path, kind, built, anchor=16), built, TOTAL - 16)
    short = optimizer(0.1)
    args = arguments(tmp_path, lr_scheduler_type=kind, lr_scheduler_kwargs=KWARGS.get(kind, {}))
    scheduler = make_scheduler(args, short, Settings(0.1, 1, 1, 5, None, None), TOTAL - 16, 0)
    assert seen == stepped(scheduler, short, TOTAL - 16)


def test_a_changed_warm_up_changes_the_shape_from_here_on(tmp_path: Path) -> None:
    built = optimizer(0.1)
    stepped(make(tmp_path, "linear", built, warmup=10), built, 4)
    assert rates(built) == pytest.approx([0.04])
    make(tmp_path, "linear", built, position=4, warmup=20)
    assert rates(built) == pytest.approx([0.02])
    make(tmp_path, "linear", built, position=4, warmup=0)
    assert rates(built) == pytest.approx([0.1 * 36 / 40])


def test_seek_goes_back_and_forth(tmp_path: Path) -> None:
    built = optimizer(0.1)
    scheduler = make(tmp_path, "cosine", built)
    reference = optimizer(0.1)
    seen = stepped(make(tmp_path, "cosine", reference), reference, TOTAL)
    for position in (30, 2, 40, 0):
        seek(scheduler, position)
        assert rates(built) == seen[position]


@pytest.mark.parametrize("kind", CLOSED)
def test_a_factor_lies_on_top_of_any_schedule(tmp_path: Path, kind: str) -> None:
    """lr(t) = value * lr * f(t): what change_lr does in the middle of a run."""
    reference = optimizer(0.1, 0.02)
    seen = stepped(make(tmp_path, kind, reference), reference, TOTAL)
    built = optimizer(0.1, 0.02)
    stepped(make(tmp_path, kind, built), built, 9)
    scale_peaks(built, 0.1, 0.25)
    assert rates(built) == pytest.approx([2.5 * rate for rate in seen[9]])
    after = stepped(make(tmp_path, kind, built, position=9), built, TOTAL - 9)
    for now, before in zip(after, seen[9:], strict=True):
        assert now == pytest.approx([2.5 * rate for rate in before])
    assert [group["initial_lr"] for group in built.param_groups] == [0.25, pytest.approx(0.05)]


def test_scaling_there_and_back_leaves_no_trace() -> None:
    built = optimizer(0.1, 0.03)
    for _ in range(50):
        scale_peaks(built, 0.1, 0.1 / 3)
        scale_peaks(built, 0.1 / 3, 0.1)
    assert rates(built) == [0.1, pytest.approx(0.03, rel=1e-12)]


def test_from_zero_there_is_no_ratio() -> None:
    built = optimizer(0.0, 0.02)
    scale_peaks(built, 0.0, 0.1)
    assert rates(built) == [0.1, 0.02]


def test_a_plateau_schedule_keeps_the_rate_it_has_found(tmp_path: Path) -> None:
    built = optimizer(0.1)
    make(tmp_path, "reduce_lr_on_plateau", built)
    built.param_groups[0]["lr"] = 0.05  # the scheduler has halved it
    make(tmp_path, "reduce_lr_on_plateau", built, position=7)
    assert rates(built) == [0.05]
    scale_peaks(built, 0.1, 0.2)
    assert rates(built) == [0.1]
    make(tmp_path, "reduce_lr_on_plateau", built, position=0)  # reset_lr_schedule
    assert rates(built) == [0.2]
