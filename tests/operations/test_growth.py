"""Depth and width: which layers and units descend from which, shares, and what does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from morphing_trainer.errors import OperationError
from morphing_trainer.lineage import NEWBORN, AxisMap, Descent, ModelSpec
from morphing_trainer.operations.depth import StackLayers
from morphing_trainer.operations.width import MOST_UNITS, SetMlpWidth, WidenMlp
from morphing_trainer.planning import operation_rng
from tests.support import tiny_config

SPECS = {layers: ModelSpec(tiny_config(n_layer=layers)) for layers in (1, 2, 3, 4)}


def sources(layers: int, **fields: Any) -> list[int]:
    morph = StackLayers(**fields).morph(SPECS[layers], operation_rng(0, 0))
    key = "transformer.h.{}.ln_1.weight"
    ancestors = [morph.lineage.ancestor(key.format(layer)) for layer in range(morph.spec.layers)]
    return [int(str(ancestor).split(".")[2]) for ancestor in ancestors]


@pytest.mark.parametrize(
    ("layers", "fields", "expected"),
    [
        (2, {"value": 2}, [0, 1, 0, 1]),
        (3, {"value": 2}, [0, 1, 2, 0, 1, 2]),
        (2, {"value": 3}, [0, 1, 0, 1, 0, 1]),
        (4, {"value": 1.5}, [0, 1, 2, 3, 0, 1]),
        (3, {"value": 4 / 3}, [0, 1, 2, 0]),
        (3, {"value": 2, "order": "interleave"}, [0, 0, 1, 1, 2, 2]),
        (4, {"value": 1.5, "order": "interleave"}, [0, 0, 1, 2, 2, 3]),
        (1, {"value": 3, "init": "identity"}, [0, 0, 0]),
        (3, {"value": [2, 1, 0, 2]}, [2, 1, 0, 2]),
        (2, {"value": [1, 1, 1]}, [1, 1, 1]),
        (2, {"value": [0, 0, 1, 1], "init": "identity"}, [0, 0, 1, 1]),
    ],
)
def test_order_of_layers(layers: int, fields: dict[str, Any], expected: list[int]) -> None:
    assert sources(layers, **fields) == expected


@pytest.mark.parametrize(
    ("layers", "fields", "match"),
    [
        (3, {"value": 1.5}, r"3 layers times 1.5 is 4.5, not a whole number of layers; use 1.33333 for 4 layers"),
        (2, {"value": [0, 1, 2]}, "names layer 2, but the model has layers 0 to 1"),
        (2, {"value": [0, 1]}, "must have more than the model's 2"),
        (2, {"value": [1, 0, 1], "init": "identity"}, r"first appear as \[1, 0\], expected \[0, 1\]"),
        (2, {"value": [1, 1, 1], "init": "identity"}, "every old layer comes once"),
    ],
)
def test_depth_that_does_not_fit(layers: int, fields: dict[str, Any], match: str) -> None:
    with pytest.raises(OperationError, match=match):
        sources(layers, **fields)


def test_attention_that_depends_on_depth_cannot_be_stacked_but_widened() -> None:
    spec = ModelSpec(tiny_config(scale_attn_by_inverse_layer_idx=True))
    for init in ("copy", "identity"):
        with pytest.raises(OperationError, match="scale_attn_by_inverse_layer_idx=True"):
            StackLayers(value=2, init=init).morph(spec, operation_rng(0, 0))
    assert WidenMlp(value=2).morph(spec, operation_rng(0, 0)).preserving


def test_frozen_layers_stay_frozen_in_their_copies_but_identities_are_trained() -> None:
    spec = SPECS[2].evolve(SPECS[2].expand("h.0") | SPECS[2].expand("wpe"))
    copied = StackLayers(value=2).morph(spec, operation_rng(0, 0)).spec
    assert copied.frozen == copied.expand("h.0") | copied.expand("h.2") | copied.expand("wpe")
    identity = StackLayers(value=2, init="identity").morph(spec, operation_rng(0, 0)).spec
    assert identity.frozen == spec.frozen


def fc(operation: WidenMlp | SetMlpWidth, spec: ModelSpec, layer: int = 0, seed: int = 0) -> AxisMap:
    origin = operation.morph(spec, operation_rng(seed, 0)).lineage.origins[f"transformer.h.{layer}.mlp.c_fc.weight"]
    assert isinstance(origin, Descent)
    return origin.maps[0]


@hypothesis_settings(max_examples=30)
@given(width=st.integers(8, 80), split=st.sampled_from(["uneven", "even"]), seed=st.integers(0, 5))
def test_shares_of_one_unit_add_up_and_uneven_ones_are_apart(width: int, split: Any, seed: int) -> None:
    spec = ModelSpec(tiny_config(n_layer=1, n_inner=8))
    entry = fc(SetMlpWidth(value=width, split=split), spec, seed=seed)
    assert entry.grad is not None
    source, share = entry.source, entry.grad
    assert source[:8].tolist() == list(range(8))
    copies = source.bincount(minlength=8)
    assert copies.max() - copies.min() <= 1
    for unit in range(8):
        parts = share[source == unit]
        assert abs(float(parts.sum()) - 1) < 1e-12
        assert (parts > 0.5 / len(parts)).all()
        gaps = parts.sort().values.diff() * len(parts)
        if split == "even":
            assert (gaps == 0).all()
        elif len(gaps):
            assert gaps.min() > 0.25 / len(gaps), "copies with nearly equal shares stay nearly equal"


def test_layers_draw_their_own_units() -> None:
    operation = WidenMlp(value=2)
    first, second = (fc(operation, SPECS[2], layer) for layer in (0, 1))
    assert not torch.equal(first.source, second.source)
    assert torch.equal(first.source, fc(operation, SPECS[2]).source)
    assert not torch.equal(first.source, fc(operation, SPECS[2], seed=1).source)


def test_larger_parts_go_to_originals_and_copies_alike() -> None:
    entry = fc(WidenMlp(value=2), SPECS[2])
    assert entry.grad is not None
    larger = int((entry.grad[:64] > 0.5).sum())
    assert 16 < larger < 48


def test_newborn_units() -> None:
    morph = SetMlpWidth(value=70, split="newborn").morph(SPECS[2], operation_rng(0, 0))
    origin = morph.lineage.origins["transformer.h.1.mlp.c_fc.weight"]
    assert isinstance(origin, Descent)
    assert origin.maps[0].source.tolist() == [*range(64), *[NEWBORN] * 6]
    assert origin.fill.std == SPECS[2].config.initializer_range
    assert morph.preserving


@pytest.mark.parametrize(
    ("operation", "match"),
    [
        (WidenMlp(value=1.01), r"64 MLP units times 1.01 is 64.64, not a whole number; use set_mlp_width 65"),
        (SetMlpWidth(value=63), "has 64 units already and cannot shrink to 63"),
    ],
)
def test_width_that_does_not_fit(operation: WidenMlp | SetMlpWidth, match: str) -> None:
    with pytest.raises(OperationError, match=match):
        operation.morph(SPECS[2], operation_rng(0, 0))


def test_only_noise_changes_the_function() -> None:
    for operation, preserving in [
        (WidenMlp(value=2), True),
        (WidenMlp(value=2, noise=0.01), False),
        (SetMlpWidth(value=64), True),
    ]:
        assert operation.morph(SPECS[2], operation_rng(0, 0)).preserving == preserving


ABSURD = [
    StackLayers(value=1e6),
    StackLayers(value=[0, 1] * 501),
    SetMlpWidth(value=10**30),
    WidenMlp(value=1e9),
    SetMlpWidth(value=MOST_UNITS // 2 + 1),  # in each of two layers
]


@pytest.mark.parametrize("operation", ABSURD, ids=lambda operation: f"{operation.name} {str(operation.value)[:20]}")
def test_absurd_sizes_are_refused_at_once(operation: Any) -> None:
    with pytest.raises(OperationError, match="more than can be meant"):
        operation.morph(SPECS[2], operation_rng(0, 0))


def test_a_list_of_layers_has_its_own_order() -> None:
    with pytest.raises(ValidationError, match="says the order itself"):
        StackLayers(value=[0, 0, 1, 1], order="interleave")
