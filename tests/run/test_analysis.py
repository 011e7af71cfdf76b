from __future__ import annotations

import math

import pytest
import torch

from morphing_trainer import LoraArguments, add_adapters
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.run.analysis import (
    Measure,
    compact,
    cosine_drift,
    effective_rank,
    measure,
    product_values,
    rank_use,
    singular_values,
    summary,
    watched,
)
from tests.support import stirred, tiny_model


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_effective_rank_in_numbers() -> None:
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([5.0, 0.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(4 / 3**0.75)  # exp(H(3/4, 1/4))
    assert effective_rank(torch.zeros(3)) == 0
    assert math.isnan(effective_rank(torch.tensor([1.0, math.nan])))


@pytest.mark.parametrize("shape", [(8, 8), (5, 8), (40, 6), (6, 40)])
def test_singular_values_are_those_of_the_whole_matrix(shape: tuple[int, int]) -> None:
    weight = drawn(*shape)
    torch.testing.assert_close(singular_values(weight), torch.linalg.svdvals(weight))
    assert singular_values(weight.bfloat16()).dtype == torch.float32
    weight[0, 0] = math.inf
    assert singular_values(weight).isnan().all() and len(singular_values(weight)) == min(shape)


def test_values_of_a_product_without_the_product() -> None:
    a, b = drawn(3, 20), drawn(12, 3, seed=1)
    torch.testing.assert_close(product_values(a, b), torch.linalg.svdvals(b @ a)[:3])
    assert product_values(a, torch.zeros(12, 3)).tolist() == [0, 0, 0]
    assert product_values(a, b * math.nan).isnan().all()


def test_cosine_drift_in_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = drawn(9, 11)
    assert cosine_drift(weight, weight.bfloat16()) == 0  # exactly, though rounding has changed every entry
    assert cosine_drift(-weight, weight) == pytest.approx(2)
    assert cosine_drift(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])) == 1
    assert cosine_drift(torch.zeros(2), torch.ones(2)) is None
    assert cosine_drift(torch.full((2,), math.nan), torch.ones(2)) is None
    moved = weight + 0.1 * drawn(9, 11, seed=1)
    whole = cosine_drift(moved, weight)
    monkeypatch.setattr("morphing_trainer.run.analysis._CHUNK", 7)
    assert cosine_drift(moved, weight) == pytest.approx(whole, rel=1e-12) and whole == pytest.approx(0.005, rel=0.5)


def test_matrices_of_all_components_are_watched() -> None:
    plain = watched(ModelSpec.of(tiny_model()))
    assert list(plain.values()) == ["wte", "wpe", "attn", "attn", "mlp", "mlp", "attn", "attn", "mlp", "mlp"]
    adapted = watched(ModelSpec.of(add_adapters(tiny_model(), LoraArguments(lora_r=4))))
    assert list(adapted.values()) == list(plain.values())
    assert not any("lora" in name for name in adapted) and any("base_layer" in name for name in adapted)


def test_adapters_use_what_their_product_uses() -> None:
    model = add_adapters(tiny_model(), LoraArguments(lora_r=4))
    spec, weights = ModelSpec.of(model), dict(model.named_parameters())
    fresh = measure(spec, weights)
    assert rank_use(fresh) == 0  # B is zero
    stirred(model)
    found = measure(spec, weights)
    adapters = {name: entry for name, entry in found.items() if entry.kind == "adapter"}
    assert set(adapters) == set(spec.sites)
    for module, entry in adapters.items():
        names = spec.adapter_names(module)
        product = weights[names.b].detach() @ weights[names.a].detach()
        assert entry.effective == pytest.approx(effective_rank(torch.linalg.svdvals(product)[:4]), rel=1e-4)
        assert entry.full == 4 and entry.share == entry.effective / 4
    assert rank_use(found) == pytest.approx(sum(entry.share for entry in adapters.values()) / len(adapters))
    assert rank_use(measure(ModelSpec.of(tiny_model()), dict(tiny_model().named_parameters()))) is None


def test_drift_is_told_where_it_is_known() -> None:
    model, moved = tiny_model(), tiny_model(1)
    spec, then = ModelSpec.of(model), {name: weight.detach() for name, weight in model.named_parameters()}
    name = "transformer.h.0.mlp.c_fc.weight"
    found = measure(spec, dict(moved.named_parameters()), {name: then[name]}, {name: then[name][:-1]})
    assert found[name].since_start == cosine_drift(moved.get_parameter(name), then[name])
    assert found[name].since_operation is None  # of another shape
    assert all(entry.since_start is None for other, entry in found.items() if other != name)


def test_what_is_logged_and_noted() -> None:
    found = {
        "transformer.h.0.attn.c_attn.base_layer.weight": Measure("attn", 8.0, 16, 0.123456),
        "transformer.h.1.attn.c_attn.base_layer.weight": Measure("attn", 4.0, 16, None, 0.5),
        "transformer.h.0.attn.c_attn": Measure("adapter", 2.0, 4),
        "transformer.h.1.attn.c_attn": Measure("adapter", 1.0, 4),
    }
    assert summary(found) == {
        "analysis/rank_attn": 6,
        "analysis/rank_share_attn": 0.375,
        "analysis/drift_start_attn": 0.123456,
        "analysis/drift_operation_attn": 0.5,
        "analysis/rank_use": 0.375,
        "analysis/rank_use/h.0.attn.c_attn": 0.5,
        "analysis/rank_use/h.1.attn.c_attn": 0.25,
    }
    noted = compact(found)
    assert noted["h.0.attn.c_attn adapter"] == [2.0, 4, None, None]
    assert noted["h.0.attn.c_attn"] == [8.0, 16, 0.1235, None]
