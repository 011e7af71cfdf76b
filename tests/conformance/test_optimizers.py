"""The memory of other optimizers than AdamW, other dtypes, and several param groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RAdam, RMSprop

from morphing_trainer import morph
from morphing_trainer.errors import OperationError
from morphing_trainer.lineage import AxisMap, Descent, Lineage, ModelSpec, transplant_states
from tests.conformance.cases import ARCHITECTURE, Case
from tests.conformance.common import described, expected, named, of, states, train, with_history

Make = Callable[[Any], Optimizer]

MAKERS: dict[str, tuple[Make, dict[str, int]]] = {
    "AdamW": (lambda p: AdamW(p, lr=1e-3, eps=1e-30, weight_decay=0.0), {"exp_avg": 1, "exp_avg_sq": 2}),
    "AdamW-fused": (lambda p: AdamW(p, lr=1e-3, weight_decay=0.0, fused=True), {"exp_avg": 1, "exp_avg_sq": 2}),
    "AdamW-amsgrad": (
        lambda p: AdamW(p, lr=1e-3, weight_decay=0.0, amsgrad=True),
        {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2},
    ),
    "Adam": (lambda p: Adam(p, lr=1e-3, betas=(0.8, 0.95)), {"exp_avg": 1, "exp_avg_sq": 2}),
    "Adam-fused-amsgrad": (
        lambda p: Adam(p, lr=1e-3, fused=True, amsgrad=True),
        {"exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2},
    ),
    "RAdam": (lambda p: RAdam(p, lr=1e-3), {"exp_avg": 1, "exp_avg_sq": 2}),
    "NAdam": (lambda p: NAdam(p, lr=1e-3), {"exp_avg": 1, "exp_avg_sq": 2}),
    "SGD": (lambda p: SGD(p, lr=1e-3, momentum=0.9, nesterov=True), {"momentum_buffer": 1}),
    "RMSprop": (lambda p: RMSprop(p, lr=1e-3, centered=True), {"square_avg": 2, "grad_avg": 1}),
    "RMSprop-momentum": (
        # A momentum over gradients that were divided by their own scale: order 0.
        lambda p: RMSprop(p, lr=1e-3, momentum=0.9, eps=1e-30),
        {"square_avg": 2, "momentum_buffer": 0},
    ),
    "Adagrad": (lambda p: Adagrad(p, lr=1e-3), {"sum": 2}),
}
every_optimizer = pytest.mark.parametrize("kind", MAKERS)


@every_optimizer
def test_transplanted_memory_is_what_the_optimizer_would_remember(kind: str) -> None:
    """Feed s * gradient from the start on the one hand; transplant with the factor s on the other."""
    make, orders = MAKERS[kind]
    source, factors = torch.tensor([0, 1, 2, 0, 2]), torch.tensor([0.3, 1.0, 0.5, 0.7, 0.5], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(6, 3, 4, generator=generator, dtype=torch.float64)

    def fed(start: Tensor, fed_grads: Tensor) -> dict[str, Any]:
        parameter = torch.nn.Parameter(start.clone())
        optimizer = make([parameter])
        for grad in fed_grads:
            parameter.grad = grad.clone()
            optimizer.step()
        return dict(optimizer.state[parameter])

    old = fed(torch.zeros(3, 4, dtype=torch.float64), grads)
    lineage = Lineage({"p": Descent("p", (AxisMap(0, source, grad=factors),))})
    new, _ = transplant_states(lineage, {"p": old}, {"p": 20}, frozenset())
    want = fed(torch.zeros(5, 4, dtype=torch.float64), grads[:, source] * factors[:, None])
    assert new["p"].keys() == want.keys() >= orders.keys()
    for key, value in want.items():
        torch.testing.assert_close(new["p"][key], value, rtol=1e-12, atol=0.0)


CARRIED = {
    "stack": ("", {"name": "stack_layers", "value": 2}),
    "widen": ("", {"name": "widen_mlp", "value": 1.5}),
    "newborn": ("", {"name": "set_mlp_width", "value": 80, "split": "newborn"}),
    "lora-raise": ("rslora", {"name": "set_attn_lora_rank", "value": 7}),
    "lora-alpha": ("lora", {"name": "change_lora_alpha", "value": 3}),
    "lora-compensate": ("lora", {"name": "change_lora_alpha", "value": 3, "compensate": True}),
}


@every_optimizer
@pytest.mark.parametrize(("lora", "written"), CARRIED.values(), ids=CARRIED)
def test_state_is_carried(kind: str, lora: str, written: dict[str, Any]) -> None:
    make, orders = MAKERS[kind]
    model, optimizer = with_history(make=make, lora=lora)
    before = states(model, optimizer)
    lineage = described(Case("", written), model).lineage
    new, new_optimizer, record = morph(model, written, optimizer)
    assert type(new_optimizer) is type(optimizer)
    assert new_optimizer.defaults == optimizer.defaults
    assert record.moments["carried"] > 0
    assert record.moments["dropped"] == 0
    trained = {name for name, parameter in named(new).items() if parameter.requires_grad}
    for name in trained:
        origin, state = lineage.origins[name], states(new, new_optimizer)[name]
        assert isinstance(origin, Descent)
        old = before[origin.ancestor]
        assert state.keys() == old.keys() >= orders.keys()
        for key, order in orders.items():
            want = expected(old[key], origin.maps, order)
            live = ~want.isnan()
            assert torch.equal(state[key][live], want[live]), (name, key)
            if not live.all():
                assert (state[key][~live] > 0).all() == (order == 2)
                assert (state[key][~live] == 0).all() == (order < 2)
        for key in old.keys() - orders.keys():
            assert torch.equal(torch.as_tensor(state[key]), torch.as_tensor(old[key]))
    start = {name: parameter.detach().clone() for name, parameter in named(new).items()}
    train(new, new_optimizer, 2, start=10)
    assert trained == {name for name, each in named(new).items() if not torch.equal(each.detach(), start[name])}


FAMILIES = {case.name: case for case in reversed(ARCHITECTURE) if not case.inert}
"""Operation -> its first case in the table that does something."""


@every_optimizer
def test_no_operation_has_an_optimizer_that_it_cannot_do(kind: str) -> None:
    """Every operation, and every kind of state: what descends is carried to its order, what is born has none."""
    make, orders = MAKERS[kind]
    for case in FAMILIES.values():
        model, optimizer = of(case, make=make)
        before, lineage = states(model, optimizer), described(case, model).lineage
        new, new_optimizer, _ = morph(model, case.written, optimizer)
        after = states(new, new_optimizer)
        for name in (name for name, parameter in named(new).items() if parameter.requires_grad):
            origin = lineage.origins[name]
            old = before[origin.ancestor] if isinstance(origin, Descent) and origin.moments == "carried" else {}
            if not old:
                assert not after[name] or after[name]["step"] == 0, (case.id, name)  # Adagrad makes it at once
                continue
            assert isinstance(origin, Descent)
            assert after[name].keys() == old.keys()
            for key, order in orders.items():
                want = expected(old[key], origin.maps, order)
                live = ~want.isnan()
                assert torch.equal(after[name][key][live], want[live]), (case.id, name, key)
        train(new, new_optimizer, 1, start=10)


@every_optimizer
def test_memory_of_merged_and_truncated_adapters_starts_afresh(kind: str) -> None:
    make, _ = MAKERS[kind]
    for written in (
        {"name": "set_attn_lora_rank", "value": 1},
        {"name": "merge_lora_weights", "value": None},
        {"name": "set_layer_lora_rank", "value": ["attn.*", 0]},
    ):
        model, optimizer = with_history(make=make, lora="lora")
        new, new_optimizer, record = morph(model, written, optimizer)
        for name, state in states(new, new_optimizer).items():
            if ".attn." in name and "bias" not in name:
                assert not state or state["step"] == 0, name  # Adagrad makes its state, with step 0, at once
        assert record.moments["newborn"] > 0
        assert record.moments["dropped"] > 0
        train(new, new_optimizer, 2, start=10)


def test_factored_memory_is_carried_where_shapes_stay_and_refused_by_name_where_they_change() -> None:
    model, optimizer = with_history(dtype=torch.float32, make=lambda p: torch.optim.Adafactor(p, lr=1e-2))
    new, new_optimizer, _ = morph(model, {"name": "stack_layers", "value": 2}, optimizer)
    train(new, new_optimizer, 2)
    with pytest.raises(OperationError, match=r"'row_var' has no rule .*transformer.h.0.mlp.c_fc.weight"):
        morph(new, {"name": "widen_mlp", "value": 2}, new_optimizer)


def test_half_precision_is_kept_and_factors_are_not_rounded_to_it() -> None:
    dtype = torch.bfloat16
    model, optimizer = with_history(dtype=dtype)
    written = {"name": "widen_mlp", "value": 2}
    lineage = described(Case("", written), model).lineage
    new, new_optimizer, _ = morph(model, written, optimizer)
    assert {parameter.dtype for parameter in new.parameters()} == {dtype}
    assert {value.dtype for state in new_optimizer.state.values() for value in state.values() if value.ndim} == {dtype}
    name = "transformer.h.0.mlp.c_proj.weight"
    (entry,) = lineage.origins[name].maps  # type: ignore[union-attr]
    gathered, share = named(model)[name].detach()[entry.source], entry.weight[:, None]
    assert torch.equal(named(new)[name].detach(), (gathered.float() * share.float()).to(dtype))
    assert not torch.equal(named(new)[name].detach(), gathered * share.to(dtype)), "the control: rounded twice"
    name = "transformer.h.1.mlp.c_fc.weight"
    (entry,) = lineage.origins[name].maps  # type: ignore[union-attr]
    for key, order in (("exp_avg", 1), ("exp_avg_sq", 2)):
        old = states(model, optimizer)[name][key][:, entry.source]
        want = (old.float() * (entry.grad**order).float()).to(dtype)
        assert torch.equal(states(new, new_optimizer)[name][key], want)


def _grouped(model: torch.nn.Module) -> Optimizer:
    """As Trainer does it: weight decay for matrices only. The rates differ, so that they can be told apart."""
    matrices = [p for p in model.parameters() if p.ndim > 1 and p.requires_grad]
    vectors = [p for p in model.parameters() if p.ndim == 1 and p.requires_grad]
    groups = [
        {"params": matrices, "weight_decay": 0.1, "lr": 1e-3, "initial_lr": 2e-3},
        {"params": vectors, "weight_decay": 0.0, "lr": 5e-4, "initial_lr": 1e-3},
    ]
    return AdamW(groups, lr=7.0, betas=(0.8, 0.99))


@pytest.mark.parametrize(
    ("written", "frozen"),
    [
        ({"name": "stack_layers", "value": 2}, ()),
        ({"name": "stack_layers", "value": 2, "init": "identity"}, ("h.1",)),
        ({"name": "widen_mlp", "value": 2}, ()),
        ({"name": "freeze_layer", "value": ["ln_*.*", "attn.*", "mlp.*", "ln_f"]}, ()),
        ({"name": "unfreeze_layer", "value": "h.0"}, ("h.0",)),
        ({"name": "unfreeze_layer", "value": ["h.*", "wpe"]}, ("h.*", "wpe")),
        ({"name": "set_attn_lora_rank", "value": 2}, ()),
        ({"name": "set_embedding_lora_rank", "value": 2}, ("h.*", "ln_f", "wpe")),
    ],
    ids=["stack", "identity", "widen", "freeze", "thaw", "thaw-all", "lora", "lora-alone"],
)
def test_param_groups_follow(written: dict[str, Any], frozen: tuple[str, ...]) -> None:
    model, _ = with_history(frozen)
    optimizer = _grouped(model)
    train(model, optimizer, 2)
    new, new_optimizer, _ = morph(model, written, optimizer)
    matrices, vectors = new_optimizer.param_groups
    for group, old, is_matrix in zip((matrices, vectors), optimizer.param_groups, (True, False), strict=True):
        wanted = [p for p in new.parameters() if p.requires_grad and (p.ndim > 1) == is_matrix]
        assert [id(p) for p in group["params"]] == [id(p) for p in wanted]
        assert {key: value for key, value in group.items() if key != "params"} == {
            key: value for key, value in old.items() if key != "params"
        }
    train(new, new_optimizer, 1)
    again, its_optimizer, _ = morph(new, {"name": "unfreeze_layer", "value": "*"}, new_optimizer)
    assert [len(group["params"]) for group in its_optimizer.param_groups] == [
        sum((p.ndim > 1) == is_matrix and name not in ModelSpec.of(again).hosts for name, p in named(again).items())
        for is_matrix in (True, False)
    ]


def test_layers_with_rates_of_their_own_hand_them_to_their_copies() -> None:
    model, _ = with_history()
    rates = {0: 1e-3, 1: 2e-3}
    groups: list[dict[str, Any]] = [
        {"params": list(model.transformer.h[layer].parameters()), "lr": rates[layer]} for layer in rates
    ]
    inside = {id(p) for group in groups for p in group["params"]}
    optimizer = AdamW([*groups, {"params": [p for p in model.parameters() if id(p) not in inside], "lr": 3e-3}])
    train(model, optimizer, 1)
    new, new_optimizer, _ = morph(model, {"name": "stack_layers", "value": [0, 0, 1]}, optimizer)
    rate = {id(p): group["lr"] for group in new_optimizer.param_groups for p in group["params"]}
    for layer, source in enumerate([0, 0, 1]):
        assert {rate[id(p)] for p in new.transformer.h[layer].parameters()} == {rates[source]}
    assert rate[id(new.transformer.wte.weight)] == 3e-3
