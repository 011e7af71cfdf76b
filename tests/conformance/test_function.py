"""What every architecture operation does to the function, its gradients, and the model as transformers sees it."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from morphing_trainer import morph
from morphing_trainer.lineage import NEWBORN, Descent, Lineage, Merged, ModelSpec, Newborn, Truncated
from tests.conformance.cases import ARCHITECTURE, Case
from tests.conformance.common import (
    described,
    distance,
    effective,
    equal,
    everything,
    expected,
    logits,
    named,
    of,
    train,
)
from tests.support import same

every_case = pytest.mark.parametrize("case", ARCHITECTURE, ids=lambda case: case.id)
preserving_case = pytest.mark.parametrize(
    "case", [case for case in ARCHITECTURE if case.preserving], ids=lambda case: case.id
)
either_head = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])

# Measured over all cases: 1.1e-15 and 5e-7; the margin is for other machines' order of summation.
EXACT = {torch.float64: 1e-13, torch.float32: 4e-6}


@pytest.mark.parametrize("dtype", EXACT, ids=["float64", "float32"])
@either_head
@every_case
def test_the_function_is_kept_or_changed_as_declared(case: Case, tied: bool, dtype: torch.dtype) -> None:
    model, optimizer = of(case, dtype=dtype, tied=tied)
    before = logits(model)
    new, _, record = morph(model, case.written, optimizer)
    assert {parameter.dtype for parameter in new.parameters()} == {dtype}
    assert record.preserving == case.preserving
    if case.preserving:
        assert distance(logits(new), before) <= EXACT[dtype]
    else:
        assert distance(logits(new), before) > 1e-3


def _same_gradient(left: Tensor, right: Tensor) -> bool:
    return bool((left - right).abs().max() <= max(1e-10 * float(right.abs().max()), 1e-15))


@either_head
@preserving_case
def test_gradients_are_what_the_lineage_predicts(case: Case, tied: bool) -> None:
    model, _ = of(case, tied=tied)
    lineage = described(case, model).lineage
    new = morph(model, case.written).model
    old = copy.deepcopy(model).requires_grad_(True)  # what is not trained has a gradient to compare with too
    train(old, torch.optim.SGD(old.parameters(), lr=0.0), 1)
    for each in (old, new):
        ids = torch.arange(16).repeat(3, 1) + torch.tensor([[0], [5], [11]])
        each(input_ids=ids, labels=ids).loss.backward()
    before = {name: parameter.grad for name, parameter in old.named_parameters()}
    scale = max(float(grad.abs().max()) for grad in before.values())
    for name, parameter in named(new).items():
        origin, grad = lineage.origins[name], parameter.grad
        if not parameter.requires_grad:
            assert grad is None, name
            continue
        assert grad is not None, name
        by_hand = _through_the_weight(name, new, lineage, before)
        if by_hand is not None:
            assert _same_gradient(grad, by_hand), name
        if isinstance(origin, Merged):
            assert _same_gradient(grad, before[origin.ancestor]), name
        elif not isinstance(origin, Descent):
            assert by_hand is not None or grad.abs().max() > 1e-6 * scale, f"{name} is newborn and never wakes up"
        elif origin.silent:
            assert not grad.any(), name
        else:
            predicted = expected(before[origin.ancestor], origin.maps, 1)
            live = ~predicted.isnan()
            assert _same_gradient(grad[live], predicted[live]), name
            if ".c_fc." in name and by_hand is None:
                assert not grad[~live].any(), f"{name}: newborn units are read as zero"
            elif not live.all() and by_hand is None:
                assert (grad[~live] != 0).all(), name


def _through_the_weight(
    name: str, new: torch.nn.Module, lineage: Lineage, before: Mapping[str, Tensor]
) -> Tensor | None:
    """Gradient of a matrix of an adapter, by the chain rule from that of its weight before: of s * B A, s * B^T G and
    s * G A^T. None for other parameters, and where the weight itself changes its shape or its place in the function.
    """
    spec = ModelSpec.of(new)
    adapter = spec.adapter_at(name)
    if adapter is None:
        return None
    host = lineage.origins[adapter.host]
    if isinstance(host, Newborn | Truncated) or (isinstance(host, Descent) and (host.maps or host.silent)):
        return None
    is_transposed = name.partition(".lora_")[0] != "lm_head"  # only nn.Linear is stored (out, in)
    weight = before[host.ancestor].T if is_transposed else before[host.ancestor]  # (out, in)
    scaling = new.get_submodule(name.partition(".lora_")[0]).scaling["default"]
    a, b = (named(new)[each].detach() for each in (adapter.a, adapter.b))
    return scaling * (b.T @ weight if name == adapter.a else weight @ a.T)


@either_head
@every_case
def test_the_new_model_is_a_stock_model_of_its_config(case: Case, tied: bool, tmp_path: Path) -> None:
    model, optimizer = of(case, dtype=torch.float32, tied=tied)
    new, _, record = morph(model, case.written, optimizer)
    assert type(new) is GPT2LMHeadModel
    assert ModelSpec.of(new).to_dict() == described(case, model).spec.to_dict()
    assert not any(tensor.is_meta for tensor in [*new.parameters(), *new.buffers()])
    assert sum(parameter.numel() for parameter in new.parameters()) == record.after["parameters"]
    assert sum(p.numel() for p in new.parameters() if p.requires_grad) == record.after["trainable"]
    if record.after["lora_modules"]:
        adapted, new = new, morph(new, {"name": "merge_lora_weights", "value": None, "restart": False}).model
        assert type(new) is GPT2LMHeadModel
        assert distance(logits(new), logits(adapted)) <= EXACT[torch.float32]
    config = new.config
    assert (new.lm_head.weight is new.transformer.wte.weight) == tied == config.tie_word_embeddings
    assert len(new.transformer.h) == config.n_layer == record.after["layers"] == len(case.sources)
    assert [block.attn.layer_idx for block in new.transformer.h] == list(range(config.n_layer))
    width = config.n_inner if config.n_inner is not None else 4 * config.n_embd
    assert all(block.mlp.c_fc.nf == block.mlp.c_fc.weight.shape[1] == width for block in new.transformer.h)

    stock = GPT2LMHeadModel(copy.deepcopy(config))
    stock.load_state_dict(new.state_dict(), strict=True)
    assert torch.equal(logits(stock.eval()), logits(new.eval()))

    new.save_pretrained(tmp_path)
    assert "morph" not in (tmp_path / "config.json").read_text()
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["model.safetensors"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is GPT2LMHeadModel
    assert torch.equal(logits(loaded.eval()), logits(new))
    assert (loaded.lm_head.weight is loaded.transformer.wte.weight) == tied


@every_case
def test_every_layer_descends_from_the_one_that_the_case_names(case: Case) -> None:
    """Read off the weights, not the lineage; with adapters off their sums, which operations on adapters only round."""
    model, _ = of(case)
    old, new = effective(model), effective(morph(model, case.written).model)
    firsts = {case.sources.index(source) for source in case.sources}
    tolerance = 1e-14 if "lora" in case.name else 0.0
    for layer, source in enumerate(case.sources):
        for part in ("attn.c_attn.weight", "attn.c_proj.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_proj.bias"):
            ancestor, descendant = old[f"transformer.h.{source}.{part}"], new[f"transformer.h.{layer}.{part}"]
            silent = case.written.get("init") == "identity" and layer not in firsts and "c_proj" in part
            if silent:
                assert not descendant.any()
            elif part == "mlp.c_fc.weight":  # the old units come first in every widening
                assert (descendant[:, : ancestor.shape[1]] - ancestor).abs().max() <= tolerance or not case.preserving
            elif part.endswith("bias") or case.preserving or "lora" not in case.name:
                assert (descendant - ancestor).abs().max() <= tolerance


@every_case
def test_nothing_else_is_touched_and_the_seed_decides(case: Case) -> None:
    model, optimizer = of(case)
    random.seed(5)
    np.random.seed(5)
    before = everything(model, optimizer)
    first, _, _ = morph(model, case.written, optimizer, seed=1)
    assert equal(before, everything(model, optimizer)), "the old model is whole until the new one is used"
    torch.rand(3)
    again, _, _ = morph(model, case.written, optimizer, seed=1)
    other, _, _ = morph(model, case.written, optimizer, seed=2)
    assert same(named(first), named(again))
    assert same(named(first), named(other)) != case.random


@every_case
def test_training_goes_on_otherwise_than_without_it(case: Case) -> None:
    """The negative control. Operations that name what is so already change nothing, and are held to that."""
    plain, plain_optimizer = of(case)
    without = train(plain, plain_optimizer, 5, start=10)
    model, optimizer = of(case)
    new, new_optimizer, _ = morph(model, case.written, optimizer)
    after = train(new, new_optimizer, 5, start=10)
    if case.inert:
        assert after == without
    else:
        assert abs(after - without) > 1e-6


@every_case
def test_everything_that_is_trained_moves(case: Case) -> None:
    """After two steps: what is behind a zero gets its first gradient at the second."""
    model, optimizer = of(case)
    new, new_optimizer, _ = morph(model, case.written, optimizer)
    start = {name: parameter.detach().clone() for name, parameter in new.named_parameters()}
    lineage = described(case, model).lineage
    train(new, new_optimizer, 2, start=10)
    for name, parameter in named(new).items():
        moved = parameter.detach() != start[name]
        assert bool(moved.any()) == parameter.requires_grad, name
        origin = lineage.origins[name]
        for entry in origin.maps if isinstance(origin, Descent) and parameter.requires_grad else ():
            born = (entry.source == NEWBORN).nonzero().squeeze(1)
            assert moved.index_select(entry.dim, born).all(), f"{name}: newborn entries never wake up"
    if not case.preserving or len(case.sources) > 2:
        firsts = {source: case.sources.index(source) for source in case.sources}
        for layer, source in enumerate(case.sources):
            if (layer != firsts[source]) and not case.frozen:
                key = "attn.c_attn.lora_A.default.weight" if case.lora else "attn.c_attn.weight"
                twin = named(new)[f"transformer.h.{firsts[source]}.{key}"]
                assert not torch.equal(twin, named(new)[f"transformer.h.{layer}.{key}"])
