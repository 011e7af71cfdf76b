"""Adapters put on a model, taken off, and read back; and every way to ask for them wrongly."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import GPT2LMHeadModel

from morphing_trainer import LoraArguments, add_adapters, without_adapters
from morphing_trainer.checkpoint.adapters import write_adapters
from morphing_trainer.errors import CheckpointError, ModelError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.lora import load_adapters
from morphing_trainer.models import new_model
from tests.support import Tokens, by_peft, stirred, tiny_config, tiny_model

C_ATTN = ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
C_PROJ = ["transformer.h.0.attn.c_proj", "transformer.h.1.attn.c_proj"]
MLP = [f"transformer.h.{layer}.mlp.{name}" for layer in (0, 1) for name in ("c_fc", "c_proj")]
TOKENS = Tokens(3, seed=9).tokens


def with_adapters(model: GPT2LMHeadModel | None = None, seed: int = 0, **arguments: Any) -> Any:
    return add_adapters(model or tiny_model(), LoraArguments(**arguments), seed)


def ranks(model: Any) -> dict[str, int]:
    return {module: site.rank for module, site in ModelSpec.of(model).sites.items()}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(TOKENS).logits
    return found


# --- What is asked for is what is made ---


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"attn_lora_rank_divisor": 4}, dict.fromkeys(C_ATTN + C_PROJ, 4)),
        ({"attn_lora_rank_divisor": 3}, dict.fromkeys(C_ATTN + C_PROJ, 5)),
        ({"vocab_lora_rank_divisor": 16}, {"transformer.wte": 1}),
        (
            {"attn_lora_rank_divisor": 1, "vocab_lora_rank_divisor": 2},
            {**dict.fromkeys(C_ATTN + C_PROJ, 16), "transformer.wte": 8},
        ),
        ({"lora_r": 4}, dict.fromkeys(C_ATTN, 4)),
        ({"lora_r": 16, "lora_target_modules": "c_attn"}, dict.fromkeys(C_ATTN, 16)),
        ({"lora_r": 2, "lora_target_modules": ["c_proj"]}, dict.fromkeys([*C_PROJ, MLP[1], MLP[3]], 2)),
        ({"lora_r": 2, "lora_target_modules": ["mlp.c_proj"]}, dict.fromkeys([MLP[1], MLP[3]], 2)),
        ({"lora_r": 2, "lora_target_modules": ["h.1.attn.c_attn", "wpe"]}, {C_ATTN[1]: 2, "transformer.wpe": 2}),
        ({"lora_r": 2, "lora_target_modules": [C_ATTN[0], "c_attn"]}, dict.fromkeys(C_ATTN, 2)),
        ({"lora_r": 2, "lora_target_modules": ["all-linear"]}, dict.fromkeys([*C_ATTN, *C_PROJ, *MLP], 2)),
        ({"lora_r": 2, "lora_target_modules": "all-linear"}, dict.fromkeys([*C_ATTN, *C_PROJ, *MLP], 2)),
        (
            {"lora_r": 2, "lora_target_modules": ["all-linear", "wte"]},
            dict.fromkeys([*C_ATTN, *C_PROJ, *MLP, "transformer.wte"], 2),
        ),
        ({"lora_r": 2, "lora_target_modules": ["lm_head", "wte"]}, {"transformer.wte": 2}),
    ],
)
def test_targets_and_ranks(arguments: dict[str, Any], expected: dict[str, int]) -> None:
    model = tiny_model()
    before = logits(model)
    made = with_adapters(model, **arguments)
    assert ranks(made) == expected
    assert torch.equal(logits(made), before), "a new adapter changes nothing"
    spec = ModelSpec.of(made)
    assert not spec.frozen
    assert spec.untrained == {f"{module}.base_layer.weight" for module in expected}
    assert made.lm_head.weight is not None
    assert ModelSpec.from_dict(spec.to_dict()).to_dict() == spec.to_dict()


@pytest.mark.parametrize("targets", [["c_attn"], ["c_proj"], ["mlp.c_fc", "wpe"], ["h.0.attn.c_attn"], "all-linear"])
def test_targets_are_found_as_peft_finds_them(targets: Any) -> None:
    """The same modules, and the same parameters under the same names and in the same shapes."""
    ours = with_adapters(lora_r=2, lora_target_modules=targets)
    theirs = by_peft(tiny_model(), r=2, target_modules=targets).get_base_model()
    assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in theirs.named_parameters()}


def test_head_of_a_model_that_is_not_tied() -> None:
    made = with_adapters(tiny_model(tie_word_embeddings=False), lora_r=2, lora_target_modules=["lm_head"])
    assert ranks(made) == {"lm_head": 2}
    both = with_adapters(tiny_model(tie_word_embeddings=False), lora_r=2, lora_target_modules=["lm_head", "wte"])
    assert ranks(both) == {"lm_head": 2, "transformer.wte": 2}
    stirred(both)
    merged = without_adapters(both)
    assert not torch.equal(merged.lm_head.weight, merged.transformer.wte.weight)
    torch.testing.assert_close(logits(merged), logits(both), rtol=0, atol=1e-5)


def test_alpha_dropout_and_scaling() -> None:
    model = with_adapters(lora_r=4, lora_alpha=6, lora_dropout=0.25, use_rslora=True)
    layer = model.get_submodule(C_ATTN[0])
    assert (layer.r, layer.lora_alpha, layer.scaling) == ({"default": 4}, {"default": 6}, {"default": 3.0})
    assert layer.lora_dropout["default"].p == 0.25
    plain = with_adapters(lora_r=4, lora_alpha=6.5)
    assert plain.get_submodule(C_ATTN[0]).scaling == {"default": 6.5 / 4}


def test_seeds() -> None:
    """They alone decide; the global random state is neither read nor changed. Drawn matrices are of PEFT's size."""
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = dict(with_adapters(seed=1, lora_r=8, lora_target_modules=["all-linear", "wte"]).named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(9)
    second = dict(with_adapters(seed=1, lora_r=8, lora_target_modules=["all-linear", "wte"]).named_parameters())
    other = dict(with_adapters(seed=2, lora_r=8, lora_target_modules=["all-linear", "wte"]).named_parameters())
    drawn = {name for name in first if re.search(r"lora_A\.|lora_embedding_B\.", name)}
    zeroed = {name for name in first if ".lora_" in name} - drawn
    assert len(drawn) == len(zeroed) == 9
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in drawn)
    assert not any(first[name].any() for name in zeroed)
    matrices = [first[f"transformer.h.{layer}.attn.c_attn.lora_A.default.weight"] for layer in (0, 1)]
    assert not torch.equal(*matrices), "every matrix has draws of its own"
    assert float(torch.cat(matrices).detach().std()) == pytest.approx((3 * 16) ** -0.5, rel=0.15)
    assert float(first["transformer.wte.lora_embedding_B.default"].detach().std()) == pytest.approx(1.0, rel=0.2)


def test_base_weights_are_shared() -> None:
    model = tiny_model()
    made = with_adapters(model, attn_lora_rank_divisor=4, vocab_lora_rank_divisor=4)
    assert made is not model
    new = dict(made.named_parameters())
    for name, weight in model.named_parameters():
        assert new[ModelSpec.of(made).name_now(name)].data_ptr() == weight.data_ptr(), name


def test_tied_embedding_has_one_adapter_on_both_sides() -> None:
    model = stirred(with_adapters(vocab_lora_rank_divisor=4))
    wte, head = model.transformer.wte, model.lm_head
    delta = (wte.lora_embedding_B["default"] @ wte.lora_embedding_A["default"]).T * 2
    with torch.no_grad():
        hidden = torch.randn(1, 16)
        want = hidden @ (wte.base_layer.weight + delta).T
        torch.testing.assert_close(head(hidden), want, rtol=0, atol=1e-5)
        torch.testing.assert_close(wte(torch.tensor([5])), (wte.base_layer.weight + delta)[[5]], rtol=0, atol=1e-5)
    names = [name for name, _ in model.named_parameters() if ".lora_" in name]
    assert names == ["transformer.wte.lora_embedding_A.default", "transformer.wte.lora_embedding_B.default"]


# --- What is trained ---


def test_freezing() -> None:
    targets = with_adapters(lora_r=2)
    still = {name for name, parameter in targets.named_parameters() if not parameter.requires_grad}
    assert still == {f"{module}.base_layer.weight" for module in C_ATTN}
    everything = with_adapters(lora_r=2, lora_freeze_base="all")
    moving = {name for name, parameter in everything.named_parameters() if parameter.requires_grad}
    assert moving == {name for name, _ in everything.named_parameters() if ".lora_" in name}
    assert len(moving) == 4
    # What was asked for is found again in the model: with the adapters gone, the one base stays frozen.
    for model in (targets, everything):
        spec = ModelSpec.of(model)
        assert (f"{C_ATTN[0]}.base_layer.weight" in spec.frozen) == (model is everything)


def test_what_was_frozen_stays_so() -> None:
    model = tiny_model()
    model.transformer.wpe.weight.requires_grad_(False)
    made = with_adapters(model, lora_r=2)
    assert not made.transformer.wpe.weight.requires_grad
    model.requires_grad_(False)
    made = with_adapters(model, lora_r=2)
    assert {name for name, p in made.named_parameters() if p.requires_grad} == {
        name for name, _ in made.named_parameters() if ".lora_" in name
    }, "an adapter on a frozen model is what is to be trained"


def test_options_are_kept_for_adapters_to_come() -> None:
    made = with_adapters(lora_alpha=12, lora_dropout=0.2, use_rslora=True)
    spec = ModelSpec.of(made)
    assert dict(spec.sites) == {}
    assert spec.adapter is not None
    assert (spec.alpha, spec.adapter.lora_dropout, spec.adapter.use_rslora) == (12, 0.2, True)
    assert [name for name, _ in made.named_parameters()] == [name for name, _ in tiny_model().named_parameters()]
    assert with_adapters(made, lora_r=2, lora_alpha=4).get_submodule(C_ATTN[0]).scaling == {"default": 2.0}


def test_nothing_asked_for() -> None:
    model = tiny_model()
    assert with_adapters(model) is model
    model = with_adapters(model, lora_r=2)
    assert with_adapters(model) is model


def test_a_model_that_has_adapters() -> None:
    """It keeps them; its base can be frozen."""
    model = stirred(with_adapters(lora_r=2, lora_alpha=4, use_rslora=True, attn_lora_rank_divisor=0))
    frozen = with_adapters(model, lora_freeze_base="all", lora_alpha=4, use_rslora=True)
    assert ranks(frozen) == dict.fromkeys(C_ATTN, 2)
    assert {name for name, p in frozen.named_parameters() if p.requires_grad} == {
        name for name, _ in frozen.named_parameters() if ".lora_" in name
    }
    assert torch.equal(logits(frozen), logits(model))
    divided = with_adapters(attn_lora_rank_divisor=3)
    again = with_adapters(divided, lora_freeze_base="all")
    assert ModelSpec.of(again).divisor("attn") == 3


def test_run_time_switches_stay() -> None:
    model = tiny_model()
    model.activation_checkpointing_enable()
    model.eval()
    made = with_adapters(model, lora_r=2)
    assert not made.training
    assert made.is_activation_checkpointing
    assert made.loss_type == model.loss_type
    assert with_adapters(new_model(tiny_config(dtype=torch.bfloat16), 0), lora_r=2).dtype == torch.bfloat16


# --- Taken off ---


@pytest.mark.parametrize("tied", [True, False])
def test_without_adapters(tied: bool) -> None:
    base = tiny_model(tie_word_embeddings=tied)
    before = logits(base)
    model = stirred(with_adapters(base, lora_r=3, lora_target_modules=["all-linear", "wte", "wpe"], use_rslora=True))
    names = [name for name, _ in base.named_parameters()]
    want = logits(model)
    assert float((want - before).abs().max()) > 0.1
    merged, plain = without_adapters(model), without_adapters(model, merge=False)
    for made in (merged, plain):
        assert type(made) is GPT2LMHeadModel
        assert [name for name, _ in made.named_parameters()] == names
        assert (made.lm_head.weight is made.transformer.wte.weight) == tied
        assert not hasattr(made, "peft_config")
    torch.testing.assert_close(logits(merged), want, rtol=0, atol=2e-5)
    assert torch.equal(logits(plain), before)
    assert torch.equal(logits(model), want), "the model itself stays as it is"
    assert torch.equal(logits(base), before)


def test_without_adapters_of_other_models() -> None:
    model = tiny_model()
    assert without_adapters(model) is model
    wrapped = by_peft(tiny_model(), r=2, target_modules=["c_attn"])
    stirred(wrapped)
    torch.testing.assert_close(logits(without_adapters(wrapped)), logits(wrapped), rtol=0, atol=1e-5)
    options_only = without_adapters(with_adapters(lora_alpha=3))
    assert not hasattr(options_only, "peft_config")
    assert torch.equal(logits(options_only), logits(model))


# --- Read back ---


def test_load_adapters(tmp_path: Path) -> None:
    model = stirred(with_adapters(lora_r=3, lora_target_modules=["c_attn", "mlp.c_fc", "wte"], lora_alpha=5))
    write_adapters(tmp_path, ModelSpec.of(model), dict(model.named_parameters()), tmp_path)
    base = without_adapters(copy.deepcopy(model), merge=False)
    read = load_adapters(base, tmp_path)
    assert torch.equal(logits(read), logits(model))
    ours, theirs = ModelSpec.of(model).to_dict(), ModelSpec.of(read).to_dict()
    assert ours["adapter"] == theirs["adapter"]
    assert {n for n, p in read.named_parameters() if not p.requires_grad} == ModelSpec.of(model).hosts
    with pytest.raises(CheckpointError, match=r"does not fit its description"):
        load_adapters(tiny_model(n_embd=32), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "sets use_dora, which a rank change or merge would not keep"),
        ({"bias": "all"}, "sets bias,"),
        ({"modules_to_save": ["lm_head"]}, "sets modules_to_save,"),
        ({"target_modules": ["wte"]}, "transformer.wte and lm_head share their weight, but not their adapter"),
    ],
)
def test_adapters_of_other_kinds_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    config = LoraConfig(**{"r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True, **options})
    config.save_pretrained(str(tmp_path))
    with pytest.raises(ModelError, match=re.escape(message)):
        load_adapters(tiny_model(), tmp_path)
