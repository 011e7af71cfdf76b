"""All or nothing: whatever raises, wherever, the old model and optimizer are untouched to the bit and train on."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from morphing_trainer import engine, functional, morph
from morphing_trainer.errors import MorphError
from morphing_trainer.lineage import factors, transplant
from tests.conformance.common import equal, everything, named, train, with_history

PHASES = (
    (engine, "transplant_weights"),
    (engine, "dressed"),
    (engine, "transplant_states"),
    (engine, "inherit_groups"),
    (functional, "states_by_name"),
    (functional, "groups_of"),
    (functional, "grow"),
    (functional, "rebuild_optimizer"),
    (functional, "install_states"),
    (transplant, "moved_moment"),
    (engine, "lost"),
    (factors, "decompose"),
)
RANK = {"name": "set_attn_lora_rank", "value": 5}  # of 2, 3, 4, 6: some rise, one falls
OPERATIONS = (
    {"name": "stack_layers", "value": 2},
    {"name": "widen_mlp", "value": 2, "noise": 0.1},
    {"name": "freeze_layer", "value": "mlp.0"},
    {"name": "unfreeze_layer", "value": "attn.0"},
    {"name": "reset_optimizer_state", "value": None},
    RANK,
)


class Injected(Exception):
    pass


def failing(real: Any, late: bool) -> Any:
    """`real`, but it raises: before its work or after it."""

    def fail(*args: Any, **options: Any) -> Any:
        if late:
            real(*args, **options)
        raise Injected

    return fail


def fails_and_leaves_all_as_it_was(
    written: Any, error: type[Exception], match: str | None = None, **options: Any
) -> None:
    model, optimizer = with_history(("attn.0",), **options)
    twin, its_optimizer = with_history(("attn.0",), **options)
    model.transformer.h[0].eval()
    train(twin, its_optimizer, 1, start=5)
    train(model, optimizer, 1, start=5)
    model.transformer.h[0].train()
    named(model)["transformer.wpe.weight"].grad = torch.full_like(model.transformer.wpe.weight, 0.25)
    random.seed(1)
    np.random.seed(1)
    before = everything(model, optimizer)
    with pytest.raises(error, match=match):
        morph(model, written, optimizer)
    assert equal(before, everything(model, optimizer))
    optimizer.zero_grad()
    assert train(model, optimizer, 3, start=6) == train(twin, its_optimizer, 3, start=6)
    assert equal(dict(model.state_dict()), dict(twin.state_dict()))


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("module", "function", "written"),
    [
        pytest.param(module, function, written, id=f"{function}-{written['name']}")
        for module, function in PHASES
        for written in OPERATIONS
        # Only a changed shape has its moments worked on, and only a lower rank is decomposed.
        if written["name"]
        in {"moved_moment": ("widen_mlp", RANK["name"]), "decompose": (RANK["name"],)}.get(function, (written["name"],))
    ],
)
def test_a_failure_in_any_phase(
    module: Any, function: str, late: bool, written: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, function, failing(getattr(module, function), late))
    fails_and_leaves_all_as_it_was(written, Injected, lora="lora" if written is RANK else "")


class Odd(torch.optim.AdamW):
    """Keeps one more thing per entry, which no rule knows."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for parameter, state in self.state.items():
            state["drift"] = torch.zeros_like(parameter)
        return loss


def test_an_optimizer_state_without_rule_is_refused_by_name() -> None:
    fails_and_leaves_all_as_it_was(
        {"name": "widen_mlp", "value": 2}, MorphError, "'drift' has no rule.*exp_avg.*use an optimizer", make=Odd
    )
    model, optimizer = with_history(make=Odd)
    new, its_optimizer, _ = morph(model, {"name": "stack_layers", "value": 2}, optimizer)
    assert "drift" in its_optimizer.state[named(new)["transformer.h.3.ln_1.bias"]], "a copy needs no rule"


@pytest.mark.parametrize(
    ("written", "match"),
    [
        ({"name": "stack_layers", "value": [0, 5]}, "layer 5"),
        ({"name": "stack_layers", "value": 1.3}, "not a whole number"),
        ({"name": "set_mlp_width", "value": 8}, "cannot shrink"),
        ({"name": "freeze_layer", "value": "*"}, "nothing would be left"),
        ({"name": "reset_optimizer_state", "value": "mlp.7"}, "mlp.7"),
        ({"name": "change_lr", "value": 2}, "settings of a training run"),
        ({"name": "widen_mlp", "value": 0.5}, "above 1"),
        ({"name": "decrease_attn_lora_scaling", "value": 2}, "no adapter on its attention"),
        ({"name": "set_layer_lora_rank", "value": ["attn.0", 17]}, "rank 17 is above 16"),
    ],
)
def test_an_operation_that_does_not_fit(written: dict[str, Any], match: str) -> None:
    fails_and_leaves_all_as_it_was(written, MorphError, match)
