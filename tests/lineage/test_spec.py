"""`ModelSpec`: describing, building, changing and writing down."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
)

from morphing_trainer.errors import ModelError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.lora import add_adapters
from morphing_trainer.lora_arguments import LoraArguments
from tests.support import tiny_config, tiny_model


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"n_inner": 40, "n_layer": 3}])
def test_described_and_built_again(changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    model.transformer.ln_f.requires_grad_(False)
    spec = ModelSpec.of(model)
    assert dict(spec.shapes) == {name: parameter.shape for name, parameter in model.named_parameters()}
    assert spec.frozen == {"transformer.ln_f.weight", "transformer.ln_f.bias"}
    assert spec.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert spec.trainable == spec.parameters - 32
    assert (spec.layers, spec.hidden) == (len(model.transformer.h), 16)
    assert spec.mlp == model.transformer.h[0].mlp.c_fc.weight.shape[1]
    assert spec.facts() == {
        **{name: getattr(spec, name) for name in ("layers", "hidden", "mlp", "parameters", "trainable")},
        "lora_rank": 0,
        "lora_modules": 0,
    }
    state = torch.get_rng_state()
    built = spec.build("meta")
    assert type(built) is GPT2LMHeadModel
    assert all(parameter.is_meta for parameter in built.parameters())
    assert {name for name, parameter in built.named_parameters() if not parameter.requires_grad} == spec.frozen
    assert torch.equal(torch.get_rng_state(), state)
    spec.build("cpu").load_state_dict(model.state_dict(), strict=True)


def test_a_description_does_not_follow_the_model_around() -> None:
    model = tiny_model()
    spec = ModelSpec.of(model)
    model.config.n_layer = 7
    model.transformer.wte.requires_grad_(False)
    assert (spec.layers, spec.frozen) == (2, frozenset())
    assert spec.build("meta").config is not spec.config


def test_evolve_changes_a_copy() -> None:
    spec = ModelSpec(tiny_config(), frozenset({"transformer.wpe.weight"}))
    before = copy.deepcopy(spec.to_dict())
    new = spec.restacked([0, 1, 0, 1]).evolve(mlp=80)
    assert (new.layers, new.mlp, new.frozen) == (4, 80, spec.frozen)
    assert (new.config.n_layer, new.config.num_hidden_layers, new.config.n_inner) == (4, 4, 80)
    assert spec.to_dict() == before
    assert spec.evolve([]).frozen == frozenset()
    assert (spec.mlp, spec.config.n_inner) == (64, None)


@pytest.mark.parametrize("changes", [{}, {"dtype": "bfloat16"}, {"n_inner": 40, "tie_word_embeddings": False}])
def test_written_down_and_read(changes: dict[str, Any]) -> None:
    spec = ModelSpec(tiny_config(**changes), frozenset({"transformer.h.0.ln_1.bias", "transformer.wpe.weight"}))
    again = ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again.to_dict() == spec.to_dict()
    assert again.frozen == spec.frozen
    assert type(again.config) is GPT2Config
    assert dict(again.shapes) == dict(spec.shapes)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"config": {}, "frozen": []},
        {"config": {"model_type": "llama"}, "frozen": []},
        {"config": None, "frozen": []},
    ],
)
def test_what_is_no_description_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="model description"):
        ModelSpec.from_dict(data)


@pytest.mark.parametrize(
    ("part", "value", "what"),
    [
        ("adapter", {"*": 2}, r"'\*' has an adapter, but is no module of the model"),
        ("adapter", {"transformer.h.7.attn.c_attn": 2}, "h.7.attn.c_attn' has an adapter, but is no module"),
        ("frozen", ["transformer.h.7.attn.c_attn.weight"], "is frozen, but is no parameter of the model"),
        ("output_hidden_states", -1e999, "output_hidden_states must be true or false, is -inf"),
        ("output_attentions", "yes", "output_attentions must be true or false, is 'yes'"),
        ("n_layer", 10**9, "n_layer must be a whole number from 1 to 1000"),
    ],
)
def test_a_description_of_what_no_model_has_is_refused(part: str, value: Any, what: str) -> None:
    spec = ModelSpec.of(add_adapters(tiny_model(), LoraArguments(lora_r=2, lora_target_modules=["c_attn"])))
    data = json.loads(json.dumps(spec.to_dict()))
    assert ModelSpec.from_dict(data).sites == spec.sites
    if part == "adapter":
        data["adapter"]["rank_pattern"] = value
        data["adapter"]["target_modules"] = [*data["adapter"]["target_modules"], *value]
    else:
        (data if part == "frozen" else data["config"])[part] = value
    with pytest.raises(ModelError, match=what):
        ModelSpec.from_dict(data)


def test_the_parameters_of_a_component() -> None:
    tied, untied = (ModelSpec(tiny_config(n_layer=11, tie_word_embeddings=tie)) for tie in (True, False))
    assert tied.expand("ln_1.1") == {"transformer.h.1.ln_1.weight", "transformer.h.1.ln_1.bias"}
    assert len(tied.expand("h.1")) == 12
    assert tied.expand("h.10") == {name for name in tied.shapes if name.startswith("transformer.h.10.")}
    assert tied.expand("lm_head") == tied.expand("wte") == {"transformer.wte.weight"}
    assert untied.expand("lm_head") == {"lm_head.weight"}
    every = frozenset().union(*(untied.expand(name) for name in untied.architecture.component_names(untied.config)))
    assert every == set(untied.shapes)


def test_unsupported_models_are_refused_by_name() -> None:
    config = tiny_config(pad_token_id=0)
    llama = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
    for model in (
        GPT2Model(config),
        GPT2ForSequenceClassification(config),
        LlamaForCausalLM(llama),
        torch.nn.Linear(2, 2),
    ):
        with pytest.raises(ModelError, match=f"{type(model).__name__} cannot be morphed; supported is GPT2LMHeadModel"):
            ModelSpec.of(model)
    with pytest.raises(ModelError, match="cross-attention"):
        ModelSpec.of(GPT2LMHeadModel(tiny_config(add_cross_attention=True)))
    with pytest.raises(ModelError, match="DataParallel cannot be morphed"):
        ModelSpec.of(torch.nn.DataParallel(tiny_model()))
