"""The rule for adapters: which origin every parameter gets, and moments against an optimizer fed from the start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from torch.optim import Adam

from morphing_trainer.lineage import (
    NEWBORN,
    AdapterChange,
    Descent,
    Merged,
    ModelSpec,
    Newborn,
    Product,
    Site,
    Truncated,
    readapt,
    transplant_states,
    transplant_weights,
)
from morphing_trainer.lineage.adapters import canonical
from tests.support import tiny_config

ATTN, WTE, FC = "transformer.h.1.attn.c_attn", "transformer.wte", "transformer.h.0.mlp.c_fc"


def described(sites: Mapping[str, tuple[int, float]], rslora: bool = False, **changes: Any) -> ModelSpec:
    bare = replace(ModelSpec(tiny_config(**changes)), adapter=canonical({}, LoraConfig(use_rslora=rslora)))
    return bare.readapted({module: Site(*site) for module, site in sites.items()})


def origins(spec: ModelSpec, new: ModelSpec, **how: Any) -> Any:
    lineage = readapt(spec, new, AdapterChange(**{"seed": 5, **how}))
    assert list(lineage.origins) == list(new.shapes)
    return lineage.origins


def test_new_adapters_and_renamed_weights() -> None:
    spec, new = described({}), described({ATTN: (2, 8), WTE: (3, 6)})
    found = origins(spec, new)
    assert found[f"{ATTN}.base_layer.weight"].ancestor == f"{ATTN}.weight"
    assert found[f"{ATTN}.base_layer.bias"].ancestor == f"{ATTN}.bias"
    assert found["transformer.wpe.weight"].ancestor == "transformer.wpe.weight"
    a, b = found[f"{ATTN}.lora_A.default.weight"], found[f"{ATTN}.lora_B.default.weight"]
    for origin, shape in ((a, (2, 16)), (b, (48, 2))):
        assert isinstance(origin, Newborn)
        assert (origin.like, origin.shape, origin.wide) == (f"{ATTN}.weight", shape, True)
    assert a.fill.std == pytest.approx((3 * 16) ** -0.5), "as wide as PEFT's own draw"
    assert b.fill.std == 0.0
    a, b = found[f"{WTE}.lora_embedding_A.default"], found[f"{WTE}.lora_embedding_B.default"]
    assert (a.shape, a.fill.std, b.shape, b.fill.std) == ((3, 32), 0.0, (16, 3), 1.0), "PEFT zeroes the other one here"
    seeds = [origin.fill.seed for origin in found.values() if isinstance(origin, Newborn)]
    assert len(set(seeds)) == len(seeds), "each has a draw of its own"


def test_new_matrices_are_as_wide_as_those_that_peft_draws() -> None:
    new = described({FC: (16, 8), WTE: (16, 8)}, n_embd=64)
    model = described({}, n_embd=64).build("cpu")
    weights = transplant_weights(
        readapt(described({}, n_embd=64), new, AdapterChange(1)), dict(model.named_parameters())
    )
    by_peft = {name: parameter.detach() for name, parameter in new.build("cpu").named_parameters()}
    for name in new.shapes:
        if ".lora_" in name:
            assert float(weights[name].std()) == pytest.approx(float(by_peft[name].std()), rel=0.1), name


@pytest.mark.parametrize("rslora", [False, True])
def test_a_larger_rank(rslora: bool) -> None:
    spec, new = described({ATTN: (2, 8), WTE: (2, 4)}, rslora), described({ATTN: (8, 8), WTE: (8, 4)}, rslora)
    found = origins(spec, new)
    ratio = 2.0 if rslora else 4.0  # old scaling over new
    for module, drawn, zeroed in (
        (ATTN, f"{ATTN}.lora_A.default.weight", f"{ATTN}.lora_B.default.weight"),
        (WTE, f"{WTE}.lora_embedding_B.default", f"{WTE}.lora_embedding_A.default"),
    ):
        (kept,), (scaled,) = found[drawn].maps, found[zeroed].maps
        assert (kept.dim, scaled.dim) == ((0, 1) if module == ATTN else (1, 0))
        for entry in (kept, scaled):
            assert entry.source.tolist() == [0, 1, *[NEWBORN] * 6]
        assert (kept.weight, kept.grad) == (None, None)
        assert scaled.weight.tolist() == pytest.approx([ratio] * 8)
        assert scaled.grad.tolist() == pytest.approx([1 / ratio] * 8)
        assert found[drawn].fill.std > 0
        assert found[zeroed].fill.std == 0
        host = found[f"{module}.base_layer.weight"]
        assert (type(host), host.ancestor, host.maps) == (Descent, f"{module}.base_layer.weight", ())


@pytest.mark.parametrize("residual", ["merge", "drop"])
def test_a_smaller_rank(residual: Any) -> None:
    spec = described({ATTN: (4, 8), WTE: (4, 4), FC: (3, 3)})
    found = origins(spec, described({ATTN: (2, 8), WTE: (1, 4), FC: (3, 3)}), residual=residual)
    a, b = f"{ATTN}.lora_A.default.weight", f"{ATTN}.lora_B.default.weight"
    product = Product(a, b, 2.0)
    assert found[a] == Truncated(a, product, 2, 4.0, drawn=a)
    assert found[b] == Truncated(b, product, 2, 4.0, drawn=a)
    a, b = f"{WTE}.lora_embedding_A.default", f"{WTE}.lora_embedding_B.default"
    assert found[a] == Truncated(a, Product(a, b, 1.0), 1, 4.0, drawn=b)
    hosts = {module: found[f"{module}.base_layer.weight"] for module in (ATTN, WTE, FC)}
    assert isinstance(hosts[FC], Descent)
    if residual == "drop":
        assert isinstance(hosts[ATTN], Descent)
        assert isinstance(hosts[WTE], Descent)
    else:
        assert hosts[ATTN] == Merged(f"{ATTN}.base_layer.weight", product, transposed=True, beyond=2)
        assert hosts[WTE] == Merged(f"{WTE}.base_layer.weight", Product(a, b, 1.0), transposed=True, beyond=1)
    untouched = found[f"{FC}.lora_A.default.weight"]
    assert (type(untouched), untouched.maps) == (Descent, ())


def test_no_adapter_any_more_or_a_restart() -> None:
    spec = described({ATTN: (4, 8), "lm_head": (2, 4)}, tie_word_embeddings=False)
    product = Product("lm_head.lora_A.default.weight", "lm_head.lora_B.default.weight", 2.0)
    gone = origins(spec, described({}, tie_word_embeddings=False), residual="drop")
    assert gone["lm_head.weight"] == Merged("lm_head.base_layer.weight", product, transposed=False), "never dropped"
    assert gone[f"{ATTN}.bias"].ancestor == f"{ATTN}.base_layer.bias"
    again = origins(spec, spec, restart=True)
    assert again["lm_head.base_layer.weight"] == Merged("lm_head.base_layer.weight", product, transposed=False)
    for name in (product.a, product.b):
        assert isinstance(again[name], Newborn)
        assert again[name].shape == tuple(spec.shapes[name])
    assert [again[name].fill.std > 0 for name in (product.a, product.b)] == [True, False]
    assert all(origin.maps == () for origin in origins(spec, spec).values()), "nothing changes"


# --- Moments ---


def _fed(weights: Mapping[str, Tensor], product: Product, grads: Tensor) -> dict[str, dict[str, Any]]:
    """State of an Adam that has seen, at these weights, what flows through W + s * B A for gradients G of W."""
    parameters = {name: torch.nn.Parameter(weights[name].clone()) for name in (product.a, product.b)}
    optimizer = Adam(parameters.values(), lr=0.0, betas=(0.8, 0.95))
    for grad in grads:
        parameters[product.a].grad = product.scale * weights[product.b].T @ grad
        parameters[product.b].grad = product.scale * grad @ weights[product.a].T
        optimizer.step()
    return {name: dict(optimizer.state[parameter]) for name, parameter in parameters.items()}


@pytest.mark.parametrize("module", [ATTN, WTE], ids=["matrix", "embedding"])
@pytest.mark.parametrize("rslora", [False, True], ids=["lora", "rslora"])
@pytest.mark.parametrize(
    ("after", "compensate"),
    [((5, 8), True), ((5, 3), True), ((2, 24), True), ((2, 24), False), ((2, 2), False)],
    ids=["rank", "rank-and-alpha", "alpha-compensated", "alpha-up", "alpha-down"],
)
def test_moments_are_what_the_optimizer_would_remember(
    module: str, rslora: bool, after: tuple[int, float], compensate: bool
) -> None:
    """Feed the new adapter from the start on the one hand; feed the old one and transplant on the other."""
    spec, new = described({module: (2, 8)}, rslora), described({module: after}, rslora)
    adapter = spec.adapter_names(module)
    generator = torch.Generator().manual_seed(0)
    old = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in spec.shapes.items()}
    lineage = readapt(spec, new, AdapterChange(3, compensate=compensate))
    weights = transplant_weights(lineage, old)
    before, now = (Product(adapter.a, adapter.b, each.scaling(module)) for each in (spec, new))
    whole = [product.scale * made[adapter.b] @ made[adapter.a] for product, made in ((before, old), (now, weights))]
    assert torch.allclose(whole[0], whole[1], rtol=1e-12, atol=1e-12) == compensate
    grads = torch.randn((6, *whole[0].shape), generator=generator, dtype=torch.float64)
    sizes = {name: weights[name].numel() for name in weights}
    moved, _ = transplant_states(lineage, _fed(old, before, grads), sizes, new.untrained)
    wanted = _fed(weights, now, grads)
    assert moved.keys() == wanted.keys()
    for name, state in wanted.items():
        dim = 0 if name == adapter.a else 1
        live = torch.arange(2)
        assert moved[name]["step"] == state["step"] == 6
        for key in ("exp_avg", "exp_avg_sq"):
            kept = [each[key].index_select(dim, live) for each in (moved[name], state)]
            torch.testing.assert_close(*kept, rtol=1e-12, atol=0.0)
            born = moved[name][key].index_select(dim, torch.arange(2, after[0]))
            mean = kept[0].mean() if key == "exp_avg_sq" else torch.tensor(0.0).double()
            torch.testing.assert_close(born, mean.expand_as(born), rtol=1e-12, atol=0.0)
