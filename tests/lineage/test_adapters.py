"""Adapters of a description: the canonical form, the modules that PEFT makes of it, and reading them back."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import GPT2LMHeadModel

from morphing_trainer.errors import ModelError
from morphing_trainer.lineage import ModelSpec, Site
from morphing_trainer.lineage.adapters import canonical, read, sites_of, written
from tests.conformance.cases import ADAPTERS
from tests.conformance.common import adapted, distance, logits, named
from tests.support import by_peft, stirred, tiny_config, tiny_model

MIXED = {name: Site(*site) for name, site in ADAPTERS["lora"][1].items()}

# --- The canonical form ---


@pytest.mark.parametrize("sites", [MIXED, dict.fromkeys(MIXED, Site(4, 0.5)), {"lm_head": Site(1, 1e-3)}, {}])
@pytest.mark.parametrize("rslora", [False, True])
def test_sites_are_written_and_read_again(sites: dict[str, Site], rslora: bool) -> None:
    config = canonical(sites, LoraConfig(use_rslora=rslora, lora_dropout=0.25), alpha=12.5)
    again = read(json.loads(json.dumps(written(config))))
    for each in (config, again):
        assert sites_of(each) == sites
        assert (each.use_rslora, each.lora_dropout, each.lora_alpha) == (rslora, 0.25, 12.5)
        assert canonical(sites_of(each), each) == each, "the form of a canonical config is itself"
    assert again == config


def test_what_most_have_is_the_rule_and_the_rest_its_exceptions() -> None:
    sites = {"a": Site(4, 8), "b": Site(2, 8), "c": Site(2, 3), "d": Site(4, 8), "e": Site(4, 8.0)}
    config = canonical(sites, alpha=8)
    assert (config.r, config.rank_pattern) == (4, {"b": 2, "c": 2})
    assert (config.lora_alpha, config.alpha_pattern) == (8, {"c": 3})
    assert canonical(dict(reversed(sites.items())), alpha=8) == config
    assert canonical({"a": Site(2, 1), "b": Site(3, 1)}).r == 3, "of two equally frequent ranks the larger"
    assert canonical({}, LoraConfig(r=5, lora_alpha=7)).r == 5


def test_a_description_with_adapters_is_written_down_and_read() -> None:
    spec = ModelSpec(tiny_config(), frozenset({"transformer.wpe.weight"})).readapted(MIXED_TIED, alpha=3.5, attn=4.5)
    again = ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again.to_dict() == spec.to_dict()
    assert (dict(again.sites), again.alpha, again.divisors) == (MIXED_TIED, 3.5, {"attn": 4.5})
    assert dict(again.shapes) == dict(spec.shapes)
    assert again.untrained == spec.untrained
    for key in ("r", "rank_pattern", "target_modules"):
        damaged = spec.to_dict()
        del damaged["adapter"][key]
        with pytest.raises(ModelError, match="model description"):
            ModelSpec.from_dict(damaged)


MIXED_TIED = {name: site for name, site in MIXED.items() if name != "lm_head"}


# --- The modules ---


@pytest.mark.parametrize("rslora", [False, True], ids=["lora", "rslora"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_live_layers_have_the_ranks_alphas_and_scalings_of_the_description(tied: bool, rslora: bool) -> None:
    """Of twelve layers, so that h.1 could be taken for h.11, and PEFT shortens a list of so many targets."""
    sites = {f"transformer.h.{layer}.attn.c_attn": Site(1 + layer, 2.0 + layer / 4) for layer in range(12)}
    sites |= {f"transformer.h.{layer}.mlp.c_proj": Site(12 - layer, 5) for layer in range(1, 12)}
    sites |= {"transformer.wte": Site(3, 7), "transformer.wpe": Site(2, 1)} | ({} if tied else {"lm_head": Site(4, 6)})
    empty = canonical({}, LoraConfig(use_rslora=rslora))
    spec = replace(ModelSpec(tiny_config(n_layer=12, tie_word_embeddings=tied)), adapter=empty).readapted(sites)
    model: Any = spec.build("cpu")
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    assert layers.keys() == sites.keys() | {"lm_head"}
    for name, site in (sites | ({"lm_head": sites["transformer.wte"]} if tied else {})).items():
        assert (layers[name].r["default"], layers[name].lora_alpha["default"]) == site
        wanted = site.alpha / (site.rank**0.5 if rslora else site.rank)
        assert layers[name].scaling["default"] == pytest.approx(wanted, rel=1e-15)
        assert site.scaling(rslora) == pytest.approx(wanted, rel=1e-15)
    assert ModelSpec.of(model).to_dict() == spec.to_dict()
    assert dict(spec.shapes) == {name: parameter.shape for name, parameter in model.named_parameters()}
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == spec.hosts
    assert spec.hosts == {f"{name}.base_layer.weight" for name in sites}
    assert (spec.facts()["lora_rank"], spec.facts()["lora_modules"]) == (12, len(sites))
    assert spec.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_tied_modules_have_one_adapter() -> None:
    model = stirred(adapted(tiny_model().double(), {"transformer.wte": (3, 6)}))
    wte, head = model.transformer.wte, model.lm_head
    for each in (model, copy.deepcopy(model)):
        wte, head = each.transformer.wte, each.lm_head
        assert head.base_layer.weight is wte.base_layer.weight
        assert [name for name in named(each) if ".lora_" in name] == [
            "transformer.wte.lora_embedding_A.default",
            "transformer.wte.lora_embedding_B.default",
        ]
        whole = dict(each.named_parameters(remove_duplicate=False))
        assert all(whole[name] is whole[owner] for name, owner in ModelSpec.of(each).tied.items())
        weight = wte(torch.arange(32))  # (vocab, hidden)
        torch.testing.assert_close(head(torch.eye(16).double()).T, weight, rtol=1e-14, atol=1e-14)
        assert (weight - wte.base_layer.weight).abs().max() > 0.1

    def gradients(ids: Tensor) -> list[Tensor]:
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return [parameter.grad for name, parameter in named(model).items() if ".lora_" in name]

    ids = torch.full((1, 16), 3)
    a, b = gradients(ids)
    assert (a != 0).all(), "the head's side: every token of the vocabulary has a logit"
    assert (a[:, 3].abs() > 2 * a[:, 4].abs()).all(), "the embedding's side too: token 3 was read"
    assert b.any()


def test_options_outlive_the_last_adapter() -> None:
    config = LoraConfig(use_rslora=True, lora_dropout=0.1)
    spec = replace(ModelSpec(tiny_config()), adapter=canonical({}, config, alpha=5)).readapted(
        {"transformer.wte": Site(2, 3)}
    )
    bare = spec.readapted({})
    model = bare.build()
    assert type(model) is GPT2LMHeadModel
    assert not any(isinstance(module, LoraLayer) for module in model.modules())
    found = ModelSpec.of(model)
    assert found.to_dict() == bare.to_dict()
    assert found.adapter is not None
    assert (found.sites, found.adapter.use_rslora, found.adapter.lora_dropout, found.alpha) == ({}, True, 0.1, 5)
    assert ModelSpec.of(tiny_model()).adapter is None


# --- Live models of other origin ---


def test_a_model_that_peft_has_wrapped() -> None:
    options: dict[str, Any] = {"target_modules": ["c_attn", "c_fc", "wte"], "r": 3, "lora_alpha": 6}
    options |= {"rank_pattern": {r"h\.1\.attn\.c_attn": 5}, "alpha_pattern": {"c_fc": 2}, "use_rslora": True}
    wrapped = by_peft(tiny_model(tie_word_embeddings=False), **options)
    spec = ModelSpec.of(wrapped)
    assert spec.sites == {
        "transformer.h.0.attn.c_attn": (3, 6),
        "transformer.h.1.attn.c_attn": (5, 6),
        "transformer.h.0.mlp.c_fc": (3, 2),
        "transformer.h.1.mlp.c_fc": (3, 2),
        "transformer.wte": (3, 6),
    }
    assert spec.to_dict() == ModelSpec.of(wrapped.get_base_model()).to_dict()
    assert dict(spec.shapes) == {name: each.shape for name, each in named(wrapped.get_base_model()).items()}
    assert spec.untrained == {name for name, each in named(wrapped.get_base_model()).items() if not each.requires_grad}
    assert spec.hosts < spec.frozen, "PEFT freezes the whole base, and so it stays"
    built = spec.build("cpu")
    built.load_state_dict(wrapped.get_base_model().state_dict(), strict=True)
    assert torch.equal(logits(built.eval()), logits(wrapped.eval()))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"use_dora": True}, r"sets use_dora, which a rank change or merge would not keep; plain LoRA can be morphed"),
        ({"modules_to_save": ["ln_f"]}, "sets modules_to_save"),
        ({"bias": "all"}, "sets bias"),
        ({"lora_bias": True}, "sets lora_bias"),
        ({"trainable_token_indices": [1, 2]}, "sets trainable_token_indices"),
    ],
    ids=lambda part: next(iter(part)) if isinstance(part, dict) else "",
)
def test_variants_that_are_more_than_a_product_are_refused(options: dict[str, Any], match: str) -> None:
    model = by_peft(tiny_model(tie_word_embeddings=False), r=2, target_modules=["c_attn"], **options)
    with pytest.raises(ModelError, match=match):
        ModelSpec.of(model)


def _wrapped(config: PeftConfig, name: str = "default") -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers in a way that is deprecated
        return get_peft_model(tiny_model(), config, adapter_name=name)


def test_other_adapters_than_one_set_of_lora_are_refused() -> None:
    wrapped = by_peft(tiny_model(), r=2, target_modules=["c_attn"])
    wrapped.add_adapter("second", LoraConfig(r=3, target_modules=["c_proj"], fan_in_fan_out=True))
    with pytest.raises(ModelError, match=r"adapters named default, second; one set .* Merge the others first"):
        ModelSpec.of(wrapped)
    named_so = _wrapped(LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True), "mine")
    with pytest.raises(ModelError, match=r"adapters named mine; .* under PEFT's usual name 'default'"):
        ModelSpec.of(named_so)
    scales = _wrapped(IA3Config(target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True))
    with pytest.raises(ModelError, match="its adapters are IA3; LoRA can be morphed"):
        ModelSpec.of(scales)
    orphan = by_peft(tiny_model(), r=2, target_modules=["c_attn"]).get_base_model()
    del orphan.peft_config
    with pytest.raises(ModelError, match=r"transformer.h.0.attn.c_attn carries an adapter, but .* no peft_config"):
        ModelSpec.of(orphan)


@pytest.mark.parametrize("targets", [["wte"], ["lm_head"], ["wte", "lm_head"]], ids=str)
def test_one_sided_adapters_of_a_tied_model_are_refused(targets: list[str]) -> None:
    wrapped = by_peft(tiny_model(), r=2, target_modules=targets)
    with pytest.raises(
        ModelError, match=r"transformer.wte and lm_head share their weight, but not their adapter.*add_"
    ):
        ModelSpec.of(wrapped)
    assert ModelSpec.of(by_peft(tiny_model(tie_word_embeddings=False), r=2, target_modules=targets)).sites


def test_adapters_that_do_not_count_as_they_say_are_refused() -> None:
    wrapped = by_peft(tiny_model(), r=2, target_modules=["c_attn"])
    sites = ModelSpec.of(wrapped).sites
    wrapped.merge_adapter()
    with pytest.raises(ModelError, match=r"c_attn is merged for inference; call unmerge_adapter\(\) first"):
        ModelSpec.of(wrapped)
    wrapped.unmerge_adapter()
    layers = [module for module in wrapped.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    with pytest.raises(ModelError, match=r"c_attn is switched off; switch it on first"):
        ModelSpec.of(wrapped)
    for layer in layers:
        layer.enable_adapters(True)
        layer.scale_layer(0.5)
    with pytest.raises(ModelError, match=r"counts 2 times, .* call unscale_layer\(\) first, and use change_lora_alpha"):
        ModelSpec.of(wrapped)
    for layer in layers:
        layer.unscale_layer()
    assert ModelSpec.of(wrapped).sites == sites


def test_quantised_weights_are_refused_saying_why() -> None:
    model: Any = tiny_model()
    model.is_quantized = True
    with pytest.raises(ModelError, match=r"its weights are quantised.*change the function; load it in float32 or bf"):
        ModelSpec.of(model)
    described: Any = tiny_model()
    described.config.quantization_config = {"load_in_8bit": True}
    with pytest.raises(ModelError, match="quantised"):
        ModelSpec.of(by_peft(described, r=2, target_modules=["c_attn"]))


# --- What is trained ---


def test_weights_under_an_adapter_are_not_trained_and_the_rest_stays_as_it_was() -> None:
    model = tiny_model()
    for part in (model.transformer.wpe, model.transformer.h[1].attn):
        part.requires_grad_(False)
    before = ModelSpec.of(model)
    sites = {"transformer.h.0.attn.c_attn": (2, 4), "transformer.h.1.attn.c_attn": (3, 4), "transformer.wte": (2, 1)}
    spec = ModelSpec.of(adapted(model, sites))
    renamed = {spec.name_now(name) for name in before.frozen}
    assert "transformer.h.1.attn.c_attn.base_layer.weight" in renamed
    assert {spec.name_before(name) for name in renamed} == before.frozen
    assert spec.untrained == spec.frozen | spec.hosts
    assert spec.expand("wte") == {name for name in spec.shapes if ".wte." in name} == spec.expand("lm_head")
    assert len(spec.expand("attn.0")) == 6
    assert spec.adapter_at("transformer.wpe.weight") is None


def test_an_adapter_on_one_side_of_an_untied_model_stays_there() -> None:
    model = stirred(adapted(tiny_model(tie_word_embeddings=False).double(), {"lm_head": (2, 5)}))
    assert list(ModelSpec.of(model).sites) == ["lm_head"]
    assert "lora" not in type(model.transformer.wte).__module__
    base = tiny_model(tie_word_embeddings=False).double()
    assert distance(logits(model), logits(base)) > 1e-2
