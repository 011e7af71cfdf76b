"""One operation after another: names, shapes and memory stay consistent, and training goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import Optimizer
from transformers import GPT2LMHeadModel

from morphing_trainer import morph
from morphing_trainer.lineage import ModelSpec
from tests.conformance.common import distance, logits, named, states, train, with_history

STEPS: dict[str, dict[str, Any]] = {
    "stack": {"name": "stack_layers", "value": 2},
    "identity": {"name": "stack_layers", "value": 1.5, "init": "identity"},
    "widen": {"name": "widen_mlp", "value": 1.5},
    "newborn": {"name": "set_mlp_width", "value": 160, "split": "newborn"},
    "freeze": {"name": "freeze_layer", "value": ["mlp.1", "ln_1.0"]},
    "unfreeze": {"name": "unfreeze_layer", "value": ["attn.0", "mlp.1"]},
    "reset": {"name": "reset_optimizer_state", "value": ["h.1", "wte"]},
}


@pytest.mark.parametrize("second", STEPS)
@pytest.mark.parametrize("first", STEPS)
@pytest.mark.parametrize("between", [0, 2], ids=["at once", "trained between"])
def test_every_ordered_pair(first: str, second: str, between: int) -> None:
    model, optimizer = with_history(("attn.0",))
    for number, name in enumerate((first, second)):
        if name == "newborn" and model.transformer.h[0].mlp.c_fc.nf > 160:
            continue
        written = dict(STEPS[name])
        if name == "identity":  # 2 -> 3, 3 -> 6, 4 -> 6 layers
            written["value"] = 2 if model.config.n_layer % 2 else 1.5
        before = logits(model)
        model, optimizer, record = morph(model, written, optimizer, seed=number)
        assert record.preserving == (name != "stack")
        assert (distance(logits(model), before) < 1e-12) == (name != "stack")
        if number == 0:
            train(model, optimizer, between, start=30)
    _is_consistent_and_trains_on(model, optimizer, steps=6)


LORA: dict[str, dict[str, Any]] = {
    "attn": {"name": "set_attn_lora_rank", "value": 3},  # of 2, 3, 4, 6: some rise, some fall
    "embedding": {"name": "set_embedding_lora_rank", "value": 2},
    "layer": {"name": "set_layer_lora_rank", "value": ["attn.0", 0]},
    "decrease": {"name": "decrease_attn_lora_scaling", "value": 1.5},
    "restart": {"name": "merge_lora_weights", "value": None},
    "merged": {"name": "merge_lora_weights", "value": None, "restart": False},
    "alpha": {"name": "change_lora_alpha", "value": 2},
}
BESIDE = ("stack", "identity", "widen", "freeze", "unfreeze")
PAIRS = [
    *((first, second) for first in LORA for second in LORA if (first, second) != ("merged", "decrease")),
    *((first, second) for first in LORA for second in BESIDE),
    *((first, second) for first in BESIDE for second in LORA),
]


@pytest.mark.parametrize(
    ("first", "second", "lora", "tied"),
    # Every pair with one kind of scaling and of head; either operation meets all four.
    [
        pytest.param(first, second, ("lora", "rslora")[number % 2], number % 4 < 2, id=f"{first}-{second}")
        for number, (first, second) in enumerate(PAIRS)
    ],
)
def test_every_ordered_pair_with_adapters(first: str, second: str, lora: str, tied: bool) -> None:
    model, optimizer = with_history(("attn.0",), lora=lora, tied=tied)
    for number, name in enumerate((first, second)):
        before, had_adapters = logits(model), bool(ModelSpec.of(model).sites)
        model, optimizer, record = morph(model, (STEPS | LORA)[name], optimizer, seed=number)
        changes = name == "stack" or (name == "alpha" and had_adapters)
        assert record.preserving == (not changes)
        assert (distance(logits(model), before) < 1e-12) == (not changes)
        if number == 0:
            train(model, optimizer, 2, start=30)
    _is_consistent_and_trains_on(model, optimizer, steps=3)
    spec = ModelSpec.of(model)
    assert (model.lm_head.weight is model.transformer.wte.weight) == tied
    for module in spec.sites:
        assert model.get_submodule(module).scaling["default"] == pytest.approx(spec.scaling(module), rel=1e-15)
    merged = morph(model, LORA["merged"]).model
    assert distance(logits(merged), logits(model)) < 1e-12
    assert list(named(merged)) == list(ModelSpec(spec.config).shapes)


def _is_consistent_and_trains_on(model: GPT2LMHeadModel, optimizer: Optimizer, steps: int) -> None:
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert held == [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    for name, state in states(model, optimizer).items():
        assert not state or state["exp_avg"].shape == state["exp_avg_sq"].shape == named(model)[name].shape, name
    counts = [state["step"].data_ptr() for state in optimizer.state.values() if state]
    assert len(set(counts)) == len(counts)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    ages = {name: float(state.get("step", 0.0)) for name, state in states(model, optimizer).items()}
    losses = [train(model, optimizer, 1, start=40) for _ in range(steps)]
    assert losses[-1] < losses[0]
    for name, parameter in named(model).items():
        assert torch.equal(parameter.detach(), start[name]) != parameter.requires_grad, name
        if parameter.requires_grad:
            assert states(model, optimizer)[name]["step"] == ages[name] + steps, name
    optimizer.load_state_dict(optimizer.state_dict())  # its own state fits its own groups
