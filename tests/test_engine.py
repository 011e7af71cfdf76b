"""The engine's pieces: run-time switches of the model, the optimizer's class, options and groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers.modeling_layers import GradientCheckpointingLayer

from morphing_trainer import morph
from morphing_trainer.engine import (
    dressed,
    groups_of,
    grow,
    install_states,
    optimizer_names,
    rebuild_optimizer,
    states_by_name,
)
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.operations.depth import StackLayers
from morphing_trainer.planning import operation_rng
from tests.conformance.common import equal, named, train
from tests.support import same, tiny_model

STACK = {"name": "stack_layers", "value": 2}


def test_grow_gives_all_that_a_trainer_needs() -> None:
    model = tiny_model()
    optimizer = AdamW(model.parameters(), lr=1e-3)
    train(model, optimizer, 1)
    spec = ModelSpec.of(model)
    groups = groups_of(model, optimizer, spec)
    grown = grow(StackLayers(value=2), spec, model, states_by_name(model, optimizer), groups, operation_rng(0, 0))
    assert grown.groups.keys() == grown.states.keys() == named(grown.model).keys() == grown.morph.spec.shapes.keys()
    assert set(grown.groups.values()) == {0}
    assert grown.census.carried == grown.morph.spec.parameters
    new_optimizer = rebuild_optimizer(optimizer, grown.model, grown.groups)
    assert not new_optimizer.state
    install_states(grown.model, new_optimizer, grown.states)
    assert equal(states_by_name(grown.model, new_optimizer), grown.states)
    assert optimizer_names(grown.model, new_optimizer) == [list(named(grown.model))]


def test_dressed_owns_the_weights_it_is_given() -> None:
    model = tiny_model()
    spec = ModelSpec.of(model)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    new = dressed(spec, weights)
    assert same(named(new), named(model))
    assert all(parameter.data_ptr() == weights[name].data_ptr() for name, parameter in new.named_parameters())
    assert new.lm_head.weight is new.transformer.wte.weight
    with pytest.raises(RuntimeError, match=r"Missing key.*ln_f"):
        dressed(spec, {name: tensor for name, tensor in weights.items() if "ln_f" not in name})


@pytest.mark.parametrize("training", [True, False])
def test_mode_attention_and_generation_settings_go_along(training: bool) -> None:
    model = tiny_model().train(training)
    model.set_attn_implementation("eager")
    model.generation_config.max_new_tokens = 3
    new = morph(model, STACK).model
    assert all(module.training == training for module in new.modules())
    assert new.config._attn_implementation == "eager"
    assert new.generation_config.max_new_tokens == 3
    assert new.loss_type == model.loss_type
    assert not new.is_activation_checkpointing
    assert new.config.use_cache == model.config.use_cache


@pytest.mark.parametrize(("every", "pattern"), [(1, [True] * 4), (2, [True, False] * 2)])
def test_activations_are_recomputed_in_the_new_blocks_too(every: int, pattern: list[bool]) -> None:
    model = tiny_model()
    model.activation_checkpointing_enable(every_n_layers=every)
    new = morph(model, STACK).model
    blocks = [module for module in new.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert [block.gradient_checkpointing for block in blocks] == pattern
    assert new.is_activation_checkpointing
    assert len(new._require_grads_hooks) == len(model._require_grads_hooks) > 0
    counts = dict.fromkeys(range(4), 0)
    for number, block in enumerate(new.transformer.h):
        block.ln_1.register_forward_hook(lambda *_, number=number: counts.update({number: counts[number] + 1}))
    new.config.use_cache = False
    loss = train(new, SGD(new.parameters(), lr=0.0), 1)
    assert list(counts.values()) == [2 if again else 1 for again in pattern], "recomputed in the backward pass"
    plain = morph(tiny_model(), STACK).model
    assert loss == pytest.approx(train(plain, SGD(plain.parameters(), lr=0.0), 1), rel=1e-6)


def test_an_optimizer_made_from_named_parameters_keeps_their_names() -> None:
    model = tiny_model()
    optimizer = AdamW(model.named_parameters(), lr=1e-3)
    train(model, optimizer, 1)
    new, new_optimizer, _ = morph(model, STACK, optimizer)
    (group,) = new_optimizer.param_groups
    assert group["param_names"] == [name for name, _ in new.named_parameters()]
    assert new_optimizer.state_dict()["param_groups"][0]["param_names"] == group["param_names"]


def test_options_of_the_class_and_of_groups_are_kept() -> None:
    model = tiny_model()
    optimizer = SGD(model.parameters(), lr=1e-2, momentum=0.9, dampening=0.1, maximize=True, foreach=False)
    scheduler = LambdaLR(optimizer, lambda step: 0.5)
    optimizer.param_groups[0]["label"] = "mine"
    new = rebuild_optimizer(optimizer, model, groups_of(model, optimizer, ModelSpec.of(model)))
    (group,) = new.param_groups
    assert {key: value for key, value in group.items() if key != "params"} == {
        key: value for key, value in optimizer.param_groups[0].items() if key != "params"
    }
    assert (group["lr"], group["initial_lr"], group["maximize"]) == (5e-3, 1e-2, True)
    assert new.defaults == optimizer.defaults
    assert scheduler.get_last_lr() == [5e-3]


class Narrow(torch.optim.Optimizer):
    """Sets a default that its constructor does not take, as several optimizers do."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr, "internal": 3})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(group["lr"] * parameter.grad)


def test_defaults_that_the_class_does_not_take_are_not_passed() -> None:
    model = tiny_model()
    new, optimizer, _ = morph(model, STACK, Narrow(model.parameters(), 0.1))
    assert type(optimizer) is Narrow
    assert optimizer.param_groups[0]["internal"] == 3
    train(new, optimizer, 1)


def test_where_frozen_parameters_belong() -> None:
    model = tiny_model()
    spec = ModelSpec.of(model)
    frozen = spec.expand("h.0") | spec.expand("ln_f") | spec.expand("wpe")
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name not in frozen]
    vectors = [p for name, p in model.named_parameters() if p.ndim == 1 and name not in frozen]
    optimizer = AdamW([{"params": vectors, "weight_decay": 0.0}, {"params": matrices}], lr=1e-3)
    assert groups_of(model, optimizer, spec) == {name: len(shape) - 1 for name, shape in spec.shapes.items()}
    wte, attn = model.transformer.wte, model.transformer.h[1].attn
    by_layer = AdamW([{"params": list(wte.parameters())}, {"params": list(attn.parameters())}])
    groups = groups_of(model, by_layer, spec)
    assert groups["transformer.h.0.attn.c_proj.weight"] == 1, "where the same parameter of another layer is"
    assert groups["transformer.ln_f.bias"] == 1, "where a parameter with as many dimensions is"
    only_matrices = AdamW([{"params": matrices}, {"params": []}])
    assert groups_of(model, only_matrices, spec)["transformer.ln_f.bias"] == 1, "where nothing is left"


def test_a_weight_keeps_its_group_while_an_adapter_is_on_it() -> None:
    """It is in no group then, and its adapter's is where it belongs."""
    model = tiny_model()
    embeddings = [model.transformer.wte.weight, model.transformer.wpe.weight]
    others = [parameter for parameter in model.parameters() if all(parameter is not e for e in embeddings)]
    groups = [{"params": others, "weight_decay": 0.1}, {"params": embeddings, "weight_decay": 0.0}]
    optimizer: Any = AdamW(groups, lr=1e-3)
    for written in (
        {"name": "set_embedding_lora_rank", "value": 4},
        {"name": "merge_lora_weights", "value": None, "restart": False},
    ):
        train(model, optimizer, 1)
        model, optimizer, _ = morph(model, written, optimizer)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in named(model).items():
        assert decays[id(parameter)] == (0.0 if "wte" in name or "wpe" in name else 0.1), name
