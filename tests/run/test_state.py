from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from morphing_trainer import LoraArguments, add_adapters
from morphing_trainer.data.cursor import Cursor
from morphing_trainer.errors import CheckpointError, MorphError
from morphing_trainer.lineage import ModelSpec, Site
from morphing_trainer.reporting.times import PARTS
from morphing_trainer.run.guard import Guard
from morphing_trainer.run.state import RunState
from morphing_trainer.run.statistics import Totals
from morphing_trainer.schedule import Position, Schedule
from morphing_trainer.settings import Settings
from morphing_trainer.triggers import Clock
from tests.support import tiny_config, tiny_model

SETTINGS = Settings(1e-3, batch_size=8, grad_accum=2, warmup_steps=10, eval_iters=20, eval_interval=50)


def state(**changes: Any) -> RunState:
    spec = changes.pop("spec", None) or ModelSpec(tiny_config(), frozenset({"transformer.wpe.weight"}))
    began = changes.pop("began", spec)
    groups = dict.fromkeys(spec.shapes, 0) | {"transformer.ln_f.bias": 1}
    values: dict[str, Any] = {
        "position": Position(2, 30, "step 44"),
        "step": 44,
        "end": 100,
        "tokens": 5632,
        "seconds": 12.5,
        "evaluations": [(35, 4.5), (40, math.inf)],
        "loss": 4.25,
        "epoch_closed": True,
        "stages": {"basics": 0, "finetune": 20},
        "stage_end": 70,
        "stage_tokens": 310,
        "next_stage": 3,
        "epochs_before": 2,
        "totals": {"basics": Totals(20, 160, 2560, 3, 61.5, 2400, 8.25), "finetune": Totals(24, 190, 3072)},
        "timing": dict.fromkeys(PARTS, 1.5),
        "executed": [{"index": 0, "step": 30, "stage": 0, "entry": {"name": "change_lr", "value": 2.0}}],
    }
    cursor = Cursor(101, seed=3, epoch=1, position=60)
    return RunState(spec, groups, SETTINGS, SETTINGS, began, cursor, **{**values, **changes})


def test_round_trip_through_strict_json() -> None:
    before = state()
    data = json.loads(json.dumps(before.to_dict(), allow_nan=False))
    after = RunState.from_dict(data, Cursor(101, 3))
    assert after.to_dict() == before.to_dict()
    assert after.clock(evaluating=True) == before.clock(evaluating=True)
    assert (after.position, after.settings, after.cursor) == (before.position, before.settings, before.cursor)
    assert (after.spec.shapes, after.spec.frozen) == (before.spec.shapes, before.spec.frozen)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, None, 0.0])
def test_any_loss_survives(loss: float | None) -> None:
    seen = [] if loss is None else [(40, loss)]
    text = json.dumps(state(loss=loss, evaluations=seen).to_dict(), allow_nan=False)
    after = RunState.from_dict(json.loads(text), Cursor(101, 3))
    assert repr(after.loss) == repr(loss)
    assert repr(after.evaluations) == repr(seen)


def test_what_triggers_see() -> None:
    assert state(evaluations=[(40, 4.5)]).clock(evaluating=True) == Clock(
        step=44,
        epoch=1 + 60 / 101,
        tokens=5632,
        train_seconds=12.5,
        waited=14,
        evaluations=((40, 4.5),),
        evaluating=True,
        stages={"basics": 0, "finetune": 20},
        end=100,
    )


def test_multipliers_and_divisors() -> None:
    run = state()
    adapters = {"attn_lora_rank_divisor": 0.0, "vocab_lora_rank_divisor": 0.0}
    assert run.multipliers == dict.fromkeys(run.multipliers, 1.0) | adapters
    run.settings = Settings(5e-4, batch_size=32, grad_accum=1, warmup_steps=30, eval_iters=5, eval_interval=25)
    run.spec = run.spec.restacked([0] * 8).evolve(mlp=256)
    assert run.multipliers == {
        "lr_multiplier": 0.5,
        "batch_size_multiplier": 4.0,
        "grad_accum_multiplier": 0.5,
        "warmup_iters_multiplier": 3.0,
        "eval_iters_multiplier": 0.25,
        "eval_interval_multiplier": 0.5,
        "lora_alpha_multiplier": 1.0,
        "n_layer_divisor": 0.25,
        "n_hidden_divisor": 0.25,
        **adapters,
    }


def test_adapters() -> None:
    """Multipliers are of what the run began with; divisors are those that were set, or follow from the largest rank."""
    began = ModelSpec.of(add_adapters(tiny_model(), LoraArguments(3, 8, lora_alpha=6, lora_dropout=0.1)))
    run = state(began=began, spec=began)
    names = ("lora_alpha_multiplier", "attn_lora_rank_divisor", "vocab_lora_rank_divisor")
    assert [run.multipliers[name] for name in names] == [1.0, 3.0, 8.0]
    sites = {"transformer.h.0.attn.c_attn": Site(4, 5), "transformer.h.1.attn.c_proj": Site(2, 9)}
    run.spec = began.readapted(sites, alpha=9, attn=0)
    assert [run.multipliers[name] for name in names] == [1.5, 4.0, 0.0]
    after = RunState.from_dict(json.loads(json.dumps(run.to_dict(), allow_nan=False)), Cursor(101, 3))
    assert after.to_dict() == run.to_dict()
    assert dict(after.spec.sites) == sites
    assert after.began.divisors == began.divisors
    assert after.began.adapter is not None
    assert after.began.adapter.lora_dropout == 0.1
    assert (after.facts()["lora_rank"], after.facts()["lora_modules"]) == (4, 2)


def test_what_was_not_set_has_no_ratio() -> None:
    bare = replace(SETTINGS, warmup_steps=0, eval_iters=None, eval_interval=None)
    spec = state().spec
    run = RunState(spec, {}, bare, replace(bare, warmup_steps=9, eval_iters=5), spec, Cursor(8, 0))
    ratios = {name: run.multipliers[name] for name in ("warmup_iters_multiplier", "eval_iters_multiplier")}
    assert ratios == {"warmup_iters_multiplier": 1.0, "eval_iters_multiplier": 1.0}
    assert run.multipliers["eval_interval_multiplier"] == 1.0


def test_facts_of_a_record() -> None:
    facts = state().facts()
    assert (facts["layers"], facts["mlp"], facts["hidden"], facts["loss"]) == (2, 64, 16, 4.25)
    assert facts["parameters"] - facts["trainable"] == 16 * 16
    assert (facts["batch_size"], facts["learning_rate"]) == (8, 1e-3)


def test_another_training_set_is_refused() -> None:
    with pytest.raises(CheckpointError, match="trained on 101 samples"):
        RunState.from_dict(state().to_dict(), Cursor(102, 3))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("settings", {"learning_rate": 1}),
        ("settings", None),
        ("position", {"done": 1, "more": 2}),
        ("spec", {"config": {}}),
        ("began", {"config": {}}),
        ("began", {**ModelSpec(tiny_config()).to_dict(), "adapter": {"r": 4}}),
        ("began", {**ModelSpec(tiny_config()).to_dict(), "divisors": 3}),
        ("groups", [1]),
        ("cursor", {"length": 101}),
        ("evaluations", 5),
        ("step", None),
        ("step", "many"),
        ("loss", "low"),
        ("evaluations", [[1]]),
        ("executed", [{"index": 1}]),
        ("step", math.inf),
        ("totals", {"train": {"steps": math.inf}}),
    ],
)
def test_a_malformed_state_is_an_error(key: str, value: Any) -> None:
    with pytest.raises(MorphError):
        RunState.from_dict({**state().to_dict(), key: value}, Cursor(101, 3))
    data = state().to_dict()
    del data[key]
    with pytest.raises(MorphError):
        RunState.from_dict(data, Cursor(101, 3))


def test_numbers_that_no_run_counts_to_are_an_error() -> None:
    bad = {"skipped": math.inf, "streak": 0, "returns": 0, "to": -1, "known": []}
    with pytest.raises(MorphError, match="cannot convert float infinity"):
        RunState.from_dict({**state().to_dict(), "bad": bad}, Cursor(101, 3))


def test_an_operation_that_is_passed_over_leaves_nothing_behind() -> None:
    """As after one that was applied: the next trigger hears of no evaluation from before it."""
    schedule = Schedule.of([{"name": "change_lr", "value": 2.0, "max_wait_iters": 1}] * 4)
    guard = Guard(2, "change_lr", 44, 4.5, 5.0, 60, False, "checkpoint-44")
    made = state(rank_use=0.5)
    made.passed_over(schedule, guard)
    assert (made.evaluations, made.rank_use) == ([], None)
    assert (made.position.done, made.position.since, made.position.pending) == (3, 44, None)
    assert made.executed[-1]["rolled_back"] and made.executed[-1]["index"] == 2
    made.evaluations = [(50, 4.0)]
    made.passed_over(schedule, guard)  # has been noted
    assert made.position.done == 3 and len(made.executed) == 2 and made.evaluations == [(50, 4.0)]
