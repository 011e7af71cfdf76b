"""What is foreseen of a run: when each phase begins, and what the run costs."""

from __future__ import annotations

from typing import Any

import pytest
from torch.optim import AdamW

from morphing_trainer.advice import advise
from morphing_trainer.flops import flops_per_token
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.outlook import Conditions, Outlook, foresee
from morphing_trainer.planning import played
from morphing_trainer.schedule import Schedule
from morphing_trainer.settings import Settings
from tests.support import tiny_config

SPEC = ModelSpec(tiny_config())
SETTINGS = Settings(1e-3, batch_size=4, grad_accum=1, warmup_steps=0, eval_iters=None, eval_interval=10)
LENGTH = 8  # so that a step is of 32 tokens
STACK: dict[str, Any] = {"name": "stack_layers", "value": 2}
LR: dict[str, Any] = {"name": "change_lr", "value": 0.5}


def outlook(*entries: dict[str, Any], steps: int | None = 1000) -> Outlook:
    conditions = Conditions(LENGTH, lambda parameters: AdamW(parameters, lr=1e-3), steps)
    return foresee(played(Schedule.of(list(entries)), SPEC, SETTINGS, steps=steps), conditions)


def begins(found: Outlook) -> list[tuple[int, int | None]]:
    return [(each.soonest, each.latest) for each in found.prospects[1:]]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([{**LR, "max_wait_iters": 50}], [(50, 50)]),
        ([{**LR, "trigger_loss": 3.0}], [(10, None)]),
        ([{**LR, "trigger_loss": 3.0, "max_wait_iters": 50}], [(10, 50)]),
        ([{**LR, "when": {"at_step": 70}}, {**LR, "max_wait_iters": 5}], [(70, 70), (75, 75)]),
        ([{**LR, "when": {"at_tokens": 3200}}], [(100, 100)]),
        ([{**LR, "when": {"at_tokens": 3201}}], [(101, 101)]),
        ([{**LR, "when": {"at_share": 0.7}}], [(700, 700)]),
        ([{**LR, "max_wait_iters": 800}, {**LR, "when": {"at_share": 0.7}}], [(800, 800), (801, 801)]),
        ([{**LR, "when": {"any": [{"loss_below": 3.0}, {"at_share": 0.5}]}}], [(10, 500)]),
        # Twice the batch makes half the steps of what is left of the tokens.
        (
            [{"name": "change_batch_size", "value": 2, "max_wait_iters": 50}, {**LR, "when": {"at_tokens": 3200}}],
            [(50, 50), (75, 75)],
        ),
        ([{**LR, "max_wait_iters": 0}, {**LR, "max_wait_iters": 0}], [(0, 0), (1, 1)]),
        ([{**LR, "trigger_loss": 3.0}, {**LR, "max_wait_iters": 5}], [(10, None), (15, None)]),
        ([{**LR, "when": {"all": [{"at_step": 30}, {"loss_below": 3.0}]}}], [(30, None)]),
        ([{**LR, "when": {"all": [{"at_step": 30}, {"at_tokens": 3200}]}}], [(100, 100)]),
        ([{**LR, "when": {"any": [{"plateau": {"window": 3}}, {"at_tokens": 3200}]}}], [(30, 100)]),
        ([{**LR, "when": {"any": [{"at_step": 30}, {"at_tokens": 3200}]}}], [(30, 30)]),
    ],
)
def test_when_each_operation_comes(entries: list[dict[str, Any]], expected: list[tuple[int, int | None]]) -> None:
    assert begins(outlook(*entries)) == expected


def test_a_share_of_a_run_of_unknown_length() -> None:
    """It comes for sure, which a loss does not."""
    found = outlook({**LR, "when": {"at_share": 0.7}}, steps=None)
    assert begins(found) == [(0, None)]
    assert found.prospects[1].by_length
    assert not advise(found)
    assert not outlook({**LR, "when": {"at_share": 0.7}}).prospects[1].by_length
    never = outlook({**LR, "trigger_loss": 3.0}, steps=None)
    assert not never.prospects[1].by_length
    assert advise(never)


def test_cost_by_hand() -> None:
    found = outlook({**STACK, "trigger_loss": 3.0, "max_wait_iters": 600})
    small, large = (flops_per_token(spec, LENGTH) for spec in (SPEC, ModelSpec(tiny_config(n_layer=4))))
    assert found.prospects[0].flops_per_token(LENGTH) == small
    assert found.prospects[1].flops_per_token(LENGTH) == large
    late, early = found.cost(late=True), found.cost(late=False)
    assert late is not None
    assert early is not None
    assert late.flops == pytest.approx(32 * (600 * small + 400 * large))
    assert early.flops == pytest.approx(32 * (10 * small + 990 * large))
    assert late.grown == early.grown == pytest.approx(32 * 1000 * large)
    assert late.tokens == 32_000


def test_cost_that_nobody_knows() -> None:
    assert outlook({**STACK, "max_wait_iters": 600}, steps=None).cost(late=True) is None
    unbounded = outlook({**STACK, "trigger_loss": 3.0})
    assert unbounded.cost(late=True) is None
    assert unbounded.cost(late=False) is not None


def test_an_operation_behind_the_end_costs_nothing() -> None:
    found = outlook({**STACK, "trigger_loss": 3.0, "max_wait_iters": 2000}).cost(late=True)
    assert found is not None
    assert found.flops == found.grown == pytest.approx(32 * 1000 * flops_per_token(SPEC, LENGTH))


def test_batches_take_memory() -> None:
    first, second = outlook({"name": "change_batch_size", "value": 4, "max_wait_iters": 5}).prospects
    assert second.memory.activations > 3 * first.memory.activations
    assert second.memory.weights == first.memory.weights
    assert second.tokens == 4 * first.tokens


WAIT = {"max_wait_iters": 100}


@pytest.mark.parametrize(
    ("entries", "words", "source"),
    [
        ([{**STACK, "value": 6, **WAIT}], "grows 6-fold at once", "2405.15319"),
        ([{**STACK, "trigger_loss": 3.0}], "may never come", ""),
        ([{**STACK, "max_wait_iters": 950}], "may leave the grown model 5% of the steps", "2511.04981"),
        ([{**LR, "trigger_loss": 3.0, "max_wait_iters": 1000}], "may come as late as step 1,000", ""),
        ([{**LR, "max_wait_iters": 1000}], "can come at step 1,000 at the earliest", ""),
        ([{"name": "change_batch_size", "value": 4, **WAIT}], "change_lr 2 would go with it", "2505.23971"),
        (
            [{"name": "set_attn_lora_rank", "value": 2, **WAIT}, {"name": "merge_lora_weights", **WAIT}],
            "without re-warming",
            "2307.05695",
        ),
    ],
)
def test_advice(entries: list[dict[str, Any]], words: str, source: str) -> None:
    found = advise(outlook(*entries))
    assert [(words in each.what, source in each.source) for each in found] == [(True, True)]
    assert found[0].index == len(entries)
    assert str(found[0]).startswith(f"operation {len(entries)}: ")


def test_advice_on_tokens_per_parameter() -> None:
    (found,) = advise(outlook({**STACK, "max_wait_iters": 10_000}, steps=100_000))
    assert found.what.startswith(f"the model has seen {320_000 / SPEC.parameters:.3g} tokens per parameter")


def test_advice_on_the_rate() -> None:
    def falling(settings: Settings, step: int) -> float:
        return 1 - (step - settings.lr_anchor) / 1000

    reset = {"name": "reset_lr_schedule", "max_wait_iters": 0}
    assert advise(outlook({**STACK, "max_wait_iters": 400}), falling) == []
    (found,) = advise(outlook({**STACK, "max_wait_iters": 600}), falling)
    assert "fallen to 40% of its peak" in found.what
    assert advise(outlook({**STACK, "max_wait_iters": 600}, reset), falling) == []
    early = [{**reset, "max_wait_iters": 500}, {**LR, **WAIT}, {**LR, **WAIT}]
    assert advise(outlook(*early, {**STACK, **WAIT}), falling) == []


def test_advice_on_repeating_at_once() -> None:
    stays: list[dict[str, Any]] = [
        {"at_share": 0.5},
        {"any": [{"waited": 100}, {"at_step": 300}]},
        {"all": [{"at_tokens": 3200}, {"at_step": 5}]},
        {"any": [{"stage": "later"}, {"waited": 100}]},
    ]
    for when in stays:
        for times in (3, "end"):
            found = advise(outlook({**LR, "repeat": times, "when": when}))
            assert ["each round of it follows at once" in each.what for each in found] == [True], (when, times)
            assert found[0].index == 1
    freeze = {"name": "freeze_layer", "value": "wpe", "when": {"at_step": 400}}
    for times in (3, "end"):
        group = {"repeat": times, "operations": [{**LR, "when": stays[0]}, freeze]}
        assert [each.index for each in advise(outlook(group))] == [1, 2]
    assert [each.index for each in advise(outlook({**LR, **WAIT}, {**LR, "repeat": 2, "when": stays[0]}))] == [2]


@pytest.mark.parametrize("times", [3, "end"])
def test_repeating_with_a_wait_is_fine(times: int | str) -> None:
    """And so is what is written twice, or repeated once."""
    twice = {**LR, "when": {"at_share": 0.5}}
    assert advise(outlook(twice, twice, {**twice, "repeat": 1})) == []
    waits = {"all": [{"waited": 10}, {"at_share": 0.5}]}
    assert advise(outlook({**LR, "repeat": times, "when": waits})) == []
    assert advise(outlook({**LR, "repeat": times, **WAIT})) == []
    assert advise(outlook({"repeat": times, "operations": [{**LR, "when": {"at_share": 0.5}}, {**LR, **WAIT}]})) == []


def test_one_block_may_grow_to_any_depth_at_once() -> None:
    """Which is what the source of progressive training found best."""
    stack = {**STACK, "value": 12, "max_wait_iters": 500}
    spec = ModelSpec(tiny_config(n_layer=1))
    conditions = Conditions(LENGTH, lambda parameters: AdamW(parameters, lr=1e-3), 1000)
    assert advise(foresee(played(Schedule.of([stack]), spec, SETTINGS, steps=1000), conditions)) == []
    assert "12-fold" in advise(outlook(stack))[0].what


def test_nothing_to_say() -> None:
    reset = {"name": "reset_lr_schedule", "max_wait_iters": 0}
    assert advise(outlook({**STACK, **WAIT}, reset)) == []
    assert advise(outlook()) == []
    batch = {"name": "change_batch_size", "value": 2, **WAIT}
    assert advise(outlook(batch, {**LR, "value": 1.4142, "max_wait_iters": 0})) == []
