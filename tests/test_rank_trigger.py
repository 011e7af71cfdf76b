"""`when: {rank_use_above: ...}`: the trigger, how it is read, and what the dry run says of it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from morphing_trainer import LoraArguments, add_adapters
from morphing_trainer.errors import ScheduleError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.planning import play
from morphing_trainer.reporting.records import Phase
from morphing_trainer.schedule import Schedule
from morphing_trainer.settings import Settings
from morphing_trainer.triggers import AllOf, AnyOf, AtStep, Clock, RankUseAbove, needs_adapters, needs_analysis
from tests.support import tiny_model

PLAIN = ModelSpec.of(tiny_model())
ADAPTED = ModelSpec.of(add_adapters(tiny_model(), LoraArguments(lora_r=4)))
RANK = RankUseAbove(value=0.6)


def clock(use: float | None, analysing: bool = True) -> Clock:
    return Clock(50, 0.0, 0, 0.0, 50, ((50, 3.0),), evaluating=True, rank_use=use, analysing=analysing)


def entries(when: Any, value: int = 8) -> list[dict[str, Any]]:
    return [{"name": "set_attn_lora_rank", "value": value, "when": when}]


def played(when: Any, spec: ModelSpec = ADAPTED, **options: Any) -> list[Phase]:
    return play(Schedule.of(entries(when)), spec, Settings(1e-3, 8, 1, 0, None, 50), **options)


def test_the_threshold_is_exact_and_holds_at_an_analysis_only() -> None:
    assert RANK.due(clock(0.6)) is None
    assert RANK.due(clock(0.6001)) == "adapters use 0.6001 > 0.6 of their rank"
    assert RANK.due(clock(0.9, analysing=False)) is None
    assert RANK.due(clock(None)) is None
    assert RANK.due(clock(math.nan)) is None
    assert RankUseAbove(value=0).due(clock(0.0)) is None


def test_it_tells_how_far_it_is() -> None:
    assert RANK.describe() == "adapters use more than 0.6 of their rank"
    assert RANK.progress(clock(None)) == RANK.describe()
    assert RANK.progress(clock(0.41)) == "adapters use 0.4100 of their rank, fires above 0.6"


def test_it_is_part_of_others() -> None:
    late = AtStep(value=10)
    assert AllOf(parts=(RANK, late)).due(clock(0.7)) == "adapters use 0.7000 > 0.6 of their rank and step 50"
    assert AllOf(parts=(RANK, late)).due(clock(0.7, analysing=False)) is None
    assert AnyOf(parts=(RANK, AtStep(value=60))).due(clock(0.7))
    assert needs_analysis(AnyOf(parts=(RANK, late))) and not needs_analysis(late)
    assert needs_adapters(AllOf(parts=(RANK, late))) and not needs_adapters(AnyOf(parts=(RANK, late)))
    assert not RANK.can_fire(evaluates=False)


@pytest.mark.parametrize(
    "when",
    [{"rank_use_above": 0.5}, {"any": [{"rank_use_above": 0.5}, {"waited": 9}]}, {"all": [{"rank_use_above": 0}]}],
)
def test_it_is_read_and_written(when: Any) -> None:
    schedule = Schedule.of(entries(when))
    assert schedule.to_list()[0]["when"] == when
    assert Schedule.of(schedule.to_list()) == schedule


@pytest.mark.parametrize(
    ("value", "what"),
    [(-0.1, "greater than or equal to 0"), (1, "less than 1"), ("half", "valid number"), (None, "valid number")],
)
def test_what_is_no_share_is_refused(value: Any, what: str) -> None:
    with pytest.raises(ScheduleError, match=rf"when\.rank_use_above: must be .*{what}"):
        Schedule.of(entries({"rank_use_above": value}))


def test_a_slip_of_the_pen_is_put_right() -> None:
    with pytest.raises(ScheduleError, match="did you mean 'rank_use_above'"):
        Schedule.of(entries({"rank_use_over": 0.5}))


def test_the_dry_run_goes_through_and_knows_the_first_step() -> None:
    assert [phase.lora_rank for phase in played({"rank_use_above": 0.5}, steps=500)] == [4, 8]


@pytest.mark.parametrize("when", [{"rank_use_above": 0.5}, {"any": [{"rank_use_above": 0.5}, {"waited": 5}]}])
def test_it_is_refused_where_nothing_is_analysed(when: Any) -> None:
    with pytest.raises(ScheduleError, match="set analysis_evals: 1"):
        played(when, analyses=False)
    assert played(when, analyses=True)


def test_it_is_refused_where_there_are_no_adapters() -> None:
    with pytest.raises(ScheduleError, match=r"can never fire .*: the model has no adapters here"):
        played({"rank_use_above": 0.5}, PLAIN)
    assert played({"any": [{"rank_use_above": 0.5}, {"waited": 5}]}, PLAIN)
    first = [{"name": "set_attn_lora_rank", "value": 4, "max_wait_iters": 0}, *entries({"rank_use_above": 0.5})]
    assert len(play(Schedule.of(first), PLAIN, Settings(1e-3, 8, 1, 0, None, 50))) == 3


def test_it_is_refused_where_nothing_is_evaluated() -> None:
    with pytest.raises(ScheduleError, match="the run does not evaluate"):
        played({"rank_use_above": 0.5}, evaluates=False)
