"""LoRA operations: ranks by divisor and by number, tied embeddings, merges beside PEFT's, freezing, and bad input."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import GPT2LMHeadModel

from morphing_trainer import morph
from morphing_trainer.errors import OperationError, ScheduleError
from morphing_trainer.lineage import ModelSpec, Site
from morphing_trainer.lineage.adapters import canonical
from morphing_trainer.operations import Morph
from morphing_trainer.planning import operation_rng
from tests.conformance.common import (
    adamw,
    adapted,
    distance,
    effective,
    logits,
    named,
    parsed,
    states,
    train,
    with_history,
)
from tests.support import by_peft, stirred, tiny_config, tiny_model

MERGED = {"name": "merge_lora_weights", "value": None, "restart": False}
RESTART = {"name": "merge_lora_weights", "value": None}
BARE = ModelSpec(tiny_config())
LARGE = ModelSpec(tiny_config(n_embd=768, n_head=12, vocab_size=1000))
"""A description needs no weights."""


def then(spec: ModelSpec, name: str, value: Any, **options: Any) -> Morph:
    operation: Any = parsed({"name": name, "value": value, **options})
    made: Morph = operation.morph(spec, operation_rng(0, 0))
    return made


def ranks(spec: ModelSpec, kind: str = "attn") -> set[int]:
    return {spec.sites[module].rank for module in spec.modules(kind) if module in spec.sites}


def short(spec: ModelSpec) -> dict[str, int]:
    return {module.removeprefix("transformer.").removeprefix("h."): site.rank for module, site in spec.sites.items()}


# --- Divisors ---


def test_divisors_are_exact_over_several_changes() -> None:
    sites = {module: Site(768 // 5, 8) for kind in ("attn", "wte") for module in LARGE.modules(kind)}
    spec = LARGE.readapted(sites, attn=5.0, wte=5.0)
    for operation, kind in (("decrease_attn_lora_scaling", "attn"), ("decrease_vocab_lora_scaling", "wte")):
        up = then(spec, operation, 2).spec
        assert (up.divisor(kind), ranks(up, kind)) == (2.5, {307})
        down = then(up, operation, 0.5).spec
        assert (down.divisor(kind), ranks(down, kind)) == (5.0, {153}), "768 // 153 would be 5.0196, and then 306"
        half = then(then(up, operation, 1.25).spec, operation, 1).spec
        assert (half.divisor(kind), ranks(half, kind)) == (2.0, {384})
        other = {"attn": "wte", "wte": "attn"}[kind]
        assert (half.divisor(other), ranks(half, other)) == (5.0, {153}), "the other one stays"
        assert then(spec, operation, 0.01).spec.sites.keys() == spec.sites.keys()


@pytest.mark.parametrize("rank", [13, 15, 17, 49, 153, 255])
def test_a_divisor_found_from_a_rank_gives_that_rank(rank: int) -> None:
    """768 / 15 is rounded to a float, and 768 // (768 / 15) is 14."""
    spec = then(LARGE, "set_attn_lora_rank", rank).spec
    same = then(spec, "decrease_attn_lora_scaling", 1)
    assert ranks(same.spec) == {rank}
    assert ranks(then(spec, "decrease_attn_lora_scaling", 2).spec) == {2 * rank}
    assert ranks(then(same.spec, "decrease_attn_lora_scaling", 3).spec) == {3 * rank}


def test_ranks_that_were_set_replace_the_divisor() -> None:
    spec = LARGE.readapted({module: Site(153, 8) for module in LARGE.modules("attn")}, attn=5.0)
    assert then(spec, "set_attn_lora_rank", 64).spec.divisor("attn") == 12.0
    assert then(spec, "set_layer_lora_rank", ["attn.0", 64]).spec.divisor("attn") == 5.0, "which the others follow"
    by_layer = then(spec, "set_layer_lora_rank", ["attn.*", 64]).spec
    assert by_layer.divisor("attn") == 12.0
    assert ranks(then(by_layer, "decrease_attn_lora_scaling", 2).spec) == {128}
    for name, value in (("set_attn_lora_rank", 0), ("set_layer_lora_rank", ["attn.*", 0])):
        gone = then(spec, name, value).spec
        assert (gone.divisor("attn"), dict(gone.divisors)) == (0.0, {})
    assert dict(then(spec, "merge_lora_weights", None, restart=False).spec.divisors) == {}
    assert dict(then(spec, "merge_lora_weights", None).spec.divisors) == {"attn": 5.0}
    assert dict(then(spec, "stack_layers", 2).spec.divisors) == {"attn": 5.0}
    assert dict(then(spec, "change_lora_alpha", 2).spec.divisors) == {"attn": 5.0}


def test_a_model_remembers_the_divisor_that_it_was_made_with() -> None:
    model = tiny_model()
    spec = ModelSpec.of(model).readapted({module: Site(3, 8) for module in BARE.modules("attn")}, attn=5.0)
    assert ModelSpec.of(spec.build("cpu")).divisor("attn") == 5.0
    assert ModelSpec.of(copy.deepcopy(spec.build("cpu"))).divisor("attn") == 5.0


# --- Which matrices, which alpha ---


def test_adapters_are_made_on_what_is_usual_in_the_model() -> None:
    both = then(BARE, "set_attn_lora_rank", 2).spec
    assert short(both) == {f"{layer}.attn.{name}": 2 for layer in (0, 1) for name in ("c_attn", "c_proj")}
    one = BARE.readapted({"transformer.h.1.attn.c_attn": Site(3, 8)})
    assert short(then(one, "set_attn_lora_rank", 2).spec) == {"0.attn.c_attn": 2, "1.attn.c_attn": 2}
    assert short(then(one, "set_layer_lora_rank", ["attn.0", 2]).spec) == {"0.attn.c_attn": 2, "1.attn.c_attn": 3}
    mlp = then(one, "set_layer_lora_rank", ["mlp.0", 4]).spec
    assert short(mlp) == {"0.mlp.c_fc": 4, "0.mlp.c_proj": 4, "1.attn.c_attn": 3}
    assert short(then(one, "set_layer_lora_rank", ["attn.1", 0]).spec) == {}
    assert short(then(BARE, "set_layer_lora_rank", ["wpe", 3]).spec) == {"wpe": 3}
    assert short(then(BARE, "set_layer_lora_rank", ["mlp.0-1", 1e0]).spec).keys() == {
        f"{layer}.mlp.{name}" for layer in (0, 1) for name in ("c_fc", "c_proj")
    }
    untied = ModelSpec(tiny_config(tie_word_embeddings=False))
    assert short(then(untied, "set_layer_lora_rank", ["lm_head", 3]).spec) == {"lm_head": 3}
    assert short(then(untied, "set_embedding_lora_rank", 3).spec) == {"wte": 3}


def test_alpha_is_what_it_was_or_what_the_run_says_or_what_the_operation_says() -> None:
    spec = replace(BARE, adapter=canonical({}, LoraConfig(use_rslora=True), alpha=5)).readapted(
        {"transformer.h.0.attn.c_attn": Site(2, 3)}
    )
    made = then(spec, "set_attn_lora_rank", 4).spec
    assert [site.alpha for site in made.sites.values()] == [3, 5]
    assert made.scaling("transformer.h.0.attn.c_attn") == 3 / 2, "rsLoRA stays"
    given = then(spec, "set_attn_lora_rank", 4, alpha=7).spec
    assert [site.alpha for site in given.sites.values()] == [7, 7]
    assert given.alpha == 5, "that of adapters to come"
    louder = then(made, "change_lora_alpha", 2).spec
    assert [site.alpha for site in louder.sites.values()] == [6, 10]
    assert then(louder, "set_layer_lora_rank", ["wte", 1]).spec.sites["transformer.wte"].alpha == 10
    assert then(BARE, "set_embedding_lora_rank", 2).spec.sites["transformer.wte"].alpha == 8
    later = then(then(BARE, "change_lora_alpha", 2).spec, "set_embedding_lora_rank", 2).spec
    assert later.sites["transformer.wte"].alpha == 16


@pytest.mark.parametrize(
    ("name", "value", "options", "preserving"),
    [
        ("set_attn_lora_rank", 2, {}, True),
        ("set_attn_lora_rank", 2, {"residual": "drop"}, False),
        ("set_attn_lora_rank", 6, {"residual": "drop"}, True),
        ("set_attn_lora_rank", 0, {"residual": "drop"}, True),
        ("change_lora_alpha", 2, {}, False),
        ("change_lora_alpha", 2, {"compensate": True}, True),
        ("merge_lora_weights", None, {}, True),
    ],
)
def test_what_keeps_the_function(name: str, value: Any, options: dict[str, Any], preserving: bool) -> None:
    spec = then(BARE, "set_attn_lora_rank", 4).spec
    assert then(spec, name, value, **options).preserving == preserving


def test_what_a_record_says() -> None:
    assert then(BARE, "merge_lora_weights", None).warning.startswith("there is nothing to merge")
    assert then(BARE, "merge_lora_weights", None, restart=False).warning.startswith("there is nothing to merge")
    assert "the model has no adapters" in then(BARE, "change_lora_alpha", 2).warning
    spec = then(BARE, "set_attn_lora_rank", 4).spec
    assert "nothing changes" in then(spec, "set_attn_lora_rank", 4).warning
    model, optimizer = with_history(lora="lora")
    before = effective(model)
    new, _, record = morph(model, {"name": "set_attn_lora_rank", "value": 1, "residual": "drop"}, optimizer)
    gone = sum(float((effective(new)[name] - before[name]).square().sum()) for name in before) ** 0.5
    assert "attn rank 4 -> 1 on 1, " in record.note
    found = re.search(r"([\d.]+)% of the adapters' norm was dropped \((\S+) of (\S+)\)", record.note)
    assert found is not None
    percent, lost, whole = map(float, found.groups())
    assert lost == pytest.approx(gone, rel=1e-2)
    assert percent == pytest.approx(100 * lost / whole, rel=1e-2)
    assert 0 < percent < 100


# --- Tied embeddings ---

TIED_OPERATIONS: tuple[dict[str, Any], ...] = (
    {"name": "set_embedding_lora_rank", "value": 6},
    {"name": "set_embedding_lora_rank", "value": 2, "alpha": 5},
    {"name": "change_lora_alpha", "value": 3, "compensate": True},
    {"name": "decrease_vocab_lora_scaling", "value": 2},
    {"name": "decrease_vocab_lora_scaling", "value": 0.25},
    RESTART,
    {"name": "stack_layers", "value": 2, "init": "identity"},
    {"name": "set_layer_lora_rank", "value": ["wte", 3]},
    {"name": "freeze_layer", "value": "wpe"},
    MERGED,
)


def _sides(model: Any) -> Iterator[Tensor]:
    """The (vocab, hidden) matrix as the embedding reads it, and as the head does."""
    with torch.no_grad():
        yield model.transformer.wte(torch.arange(model.config.vocab_size))
        yield model.lm_head(torch.eye(model.config.n_embd, dtype=model.dtype)).T


def test_embedding_and_head_share_one_adapter_through_every_operation() -> None:
    model, optimizer = with_history()
    model, optimizer, _ = morph(model, {"name": "set_embedding_lora_rank", "value": 3}, optimizer)
    for number, written in enumerate(TIED_OPERATIONS):
        train(model, optimizer, 2, start=10 * number)
        before, (weight, _) = logits(model), _sides(model)
        model, optimizer, _ = morph(model, written, optimizer, seed=number)
        assert distance(logits(model), before) < 1e-13, written
        for side in _sides(model):
            torch.testing.assert_close(side, weight, rtol=0.0, atol=1e-13)
        base = [getattr(module, "base_layer", module) for module in (model.transformer.wte, model.lm_head)]
        assert base[0].weight is base[1].weight
        assert not [name for name in named(model) if name.startswith("lm_head")]
        pair = [each for name, each in named(model).items() if ".wte.lora_" in name]
        assert len(pair) == (0 if written is MERGED else 2)
        held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        assert all(held.count(id(each)) == 1 for each in pair)
        assert len(held) == len(set(held))
    assert type(model.transformer.wte) is torch.nn.Embedding


def _by_peft_and_by_us(tied: bool) -> tuple[Any, GPT2LMHeadModel]:
    """PEFT's model, and ours with the same matrices."""
    base = tiny_model(tie_word_embeddings=tied).double()
    targets = ["c_attn", "c_proj", "c_fc", "wte", *(["lm_head"] if tied else [])]
    options = {"ensure_weight_tying": True} if tied else {}
    theirs = stirred(by_peft(copy.deepcopy(base), r=3, lora_alpha=6, target_modules=targets, **options).double())
    sites = {name: (3, 6) for name, each in theirs.get_base_model().named_modules() if isinstance(each, LoraLayer)}
    ours = adapted(base, {name: site for name, site in sites.items() if not (tied and name == "lm_head")})
    matrices = named(theirs.get_base_model())
    if tied:  # PEFT's four matrices share the memory of two
        matrices["transformer.wte.lora_embedding_A.default"] = matrices["lm_head.lora_B.default.weight"].T
        matrices["transformer.wte.lora_embedding_B.default"] = matrices["lm_head.lora_A.default.weight"].T
    with torch.no_grad():
        for name, parameter in named(ours).items():
            parameter.copy_(matrices[name])
    return theirs, ours


def test_peft_changes_a_tied_model_by_merging_and_we_do_not() -> None:
    theirs, ours = _by_peft_and_by_us(tied=True)
    before = logits(theirs)
    assert distance(logits(ours), before) < 1e-13, "the same function"
    for restart in (True, False):
        merged = morph(ours, {**RESTART, "restart": restart}).model
        assert distance(logits(merged), before) < 1e-13
    assert merged.lm_head.weight is merged.transformer.wte.weight
    with pytest.warns(UserWarning, match="This can lead to complications"):
        by_them = theirs.merge_and_unload()
    assert by_them.lm_head.weight is by_them.transformer.wte.weight
    assert distance(logits(by_them), before) > 0.1, "the product has been added to the one weight twice"


def test_an_untied_model_is_merged_as_peft_does() -> None:
    theirs, ours = _by_peft_and_by_us(tied=False)
    before = logits(theirs)
    merged, by_them = morph(ours, MERGED).model, theirs.merge_and_unload()
    assert named(merged).keys() == named(by_them).keys()
    for name, parameter in named(merged).items():
        torch.testing.assert_close(parameter.detach(), named(by_them)[name].detach(), rtol=1e-14, atol=1e-14)
    assert distance(logits(merged), before) < 1e-13


# --- Precision ---


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_adapters_of_a_bfloat16_model_are_float32_and_merges_round_once(tied: bool) -> None:
    base = tiny_model(tie_word_embeddings=tied).bfloat16()
    model, optimizer, _ = morph(base, {"name": "set_layer_lora_rank", "value": ["attn.*", 4]}, adamw(base.parameters()))
    for value in (["mlp.*", 3], ["wte", 5]):
        model, optimizer, _ = morph(model, {"name": "set_layer_lora_rank", "value": value}, optimizer)
    types = {".lora_" in name: set[torch.dtype]() for name in named(model)}
    for name, parameter in named(model).items():
        types[".lora_" in name].add(parameter.dtype)
    assert types == {True: {torch.float32}, False: {torch.bfloat16}}
    assert train(model, optimizer, 3) > 0
    stirred(model)
    exact = effective(copy.deepcopy(model).double())
    merged = morph(model, MERGED).model
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    for name, parameter in named(merged).items():
        assert ((parameter.detach().double() - exact[name]).abs() <= 0.501 * _spacing(exact[name])).all(), name
    lower, _, _ = morph(model, {"name": "set_attn_lora_rank", "value": 2}, optimizer)
    for name, weight in effective(copy.deepcopy(lower).double()).items():
        host = named(lower)[ModelSpec.of(lower).name_now(name)].detach()
        allowed = 0.501 * _spacing(host.double()) + 1e-6  # the matrices of rank 2 are rounded too, to float32
        assert ((weight - exact[name]).abs() <= allowed).all(), f"{name}: the rest was rounded once"


def _spacing(weight: Tensor) -> Tensor:
    """Of the bfloat16 numbers around each entry."""
    return torch.exp2(torch.floor(torch.log2(weight.abs().clamp(min=1e-30))) - 7)


# --- What is trained ---


def _trained(model: Any) -> set[str]:
    return {name for name, parameter in named(model).items() if parameter.requires_grad}


def test_freezing_a_component_freezes_its_adapter_and_thawing_leaves_its_weight_under_it() -> None:
    model, optimizer = with_history(lora="lora")
    hosts = ModelSpec.of(model).hosts
    cold, its_optimizer, _ = morph(model, {"name": "freeze_layer", "value": "attn.0"}, optimizer)
    assert not [name for name in _trained(cold) if ".h.0.attn." in name]
    warm, _, record = morph(cold, {"name": "unfreeze_layer", "value": "attn.0"}, its_optimizer)
    assert _trained(warm) == _trained(model)
    assert not _trained(warm) & hosts
    assert record.moments["newborn"] == sum(
        each.numel() for name, each in named(warm).items() if ".h.0.attn." in name and name not in hosts
    )


@pytest.mark.parametrize("written", [RESTART, {"name": "set_attn_lora_rank", "value": 1}], ids=["restart", "lower"])
def test_frozen_adapters_stay_frozen(written: dict[str, Any]) -> None:
    model, optimizer = with_history(("attn.0", "mlp.1"), lora="lora")
    new, new_optimizer, _ = morph(model, written, optimizer)
    assert _trained(new) == _trained(model)
    train(new, new_optimizer, 1)


def test_weights_train_again_without_their_adapters_from_step_zero_unless_frozen_before() -> None:
    for written in (MERGED, {"name": "set_layer_lora_rank", "value": ["attn.*", 0]}):
        model, optimizer = with_history(("attn.0", "mlp.1"), lora="lora")
        new, new_optimizer, record = morph(model, written, optimizer)
        trained = _trained(new)
        assert not [name for name in trained if ".h.0.attn." in name or ".h.1.mlp." in name]
        assert {"transformer.h.1.attn.c_attn.weight", "transformer.h.1.attn.c_proj.weight"} <= trained
        after = states(new, new_optimizer)
        assert not after["transformer.h.1.attn.c_attn.weight"]
        assert after["transformer.h.1.attn.c_attn.bias"]["step"] == 3
        assert record.moments["newborn"] >= 16 * 48 + 16 * 16
        train(new, new_optimizer, 2)
        assert states(new, new_optimizer)["transformer.h.1.attn.c_attn.weight"]["step"] == 2


def test_adapters_on_frozen_components_are_trained_and_the_rest_stays_frozen() -> None:
    model, optimizer = with_history(("h.*",))
    new, new_optimizer, _ = morph(model, {"name": "set_attn_lora_rank", "value": 2}, optimizer)
    fresh = _trained(new) - _trained(model)
    assert fresh == {name for name in named(new) if ".lora_" in name}
    train(new, new_optimizer, 1)
    back, _, _ = morph(new, {"name": "set_attn_lora_rank", "value": 0}, new_optimizer)
    assert _trained(back) == _trained(model)


def test_something_must_be_left_to_train() -> None:
    only = then(BARE, "set_attn_lora_rank", 2).spec
    only = only.evolve({name for name in only.shapes if ".lora_" not in name})
    assert then(only, "merge_lora_weights", None).spec.trainable == only.trainable > 0
    for name, value, options in (
        ("merge_lora_weights", None, {"restart": False}),
        ("set_attn_lora_rank", 0, {}),
        ("freeze_layer", "attn.*", {}),
    ):
        with pytest.raises(OperationError, match=r"nothing would be left to train"):
            then(only, name, value, **options)


def test_compiled_equals_eager_after_a_rank_change() -> None:
    model, optimizer = with_history(dtype=torch.float32, lora="lora")
    new, optimizer, _ = morph(model, {"name": "set_layer_lora_rank", "value": ["attn.1", 8]}, optimizer)
    new, _, _ = morph(new, {"name": "set_embedding_lora_rank", "value": 2}, optimizer)
    torch._dynamo.reset()
    ids = torch.arange(16)[None]
    losses = [each(input_ids=ids, labels=ids).loss for each in (new, torch.compile(new, backend="eager"))]
    grads = [torch.autograd.grad(loss, [p for p in new.parameters() if p.requires_grad]) for loss in losses]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0.0)
    for left, right in zip(*grads, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)
    torch._dynamo.reset()


# --- Bad input ---

LAYER = "set_layer_lora_rank"


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        *(
            (LAYER, value, r"must be a component and a rank, such as \[attn.2, 16\], is ")
            for value in (
                None,
                "attn.0",
                ["attn.0"],
                ["attn.0", 1, 2],
                [16, "attn.2"],
                {"attn.0": 2},
                [["attn.0", 2]],
                4,
            )
        ),
        *((LAYER, ["attn.0", rank], "the rank must be a whole number from 0, is ") for rank in (-1, 2.5, "2", True)),
        *(
            (
                LAYER,
                [part, 2],
                rf"'{part}' is not a component that can carry an adapter; those are attn.N, lm_head, mlp.N",
            )
            for part in ("ln_1.0", "h.0", "ln_f")
        ),
        (LAYER, ["atn.0", 2], "'atn.0' names no component; did you mean 'attn'"),
        (LAYER, ["attn.1-0", 2], "runs backwards; write attn.0-1"),
        (LAYER, ["attn.x", 2], "after the dot comes a layer"),
        *(
            (f"set_{part}_lora_rank", value, "value: must be ")
            for part in ("attn", "embedding")
            for value in (-1, 2.5, "3", True, None)
        ),
        *(
            (f"decrease_{part}_lora_scaling", value, "value: must be ")
            for part in ("attn", "vocab")
            for value in (0, -2, float("inf"), "2", None)
        ),
        ("merge_lora_weights", 3, "value: must be null, is 3"),
        ("change_lora_alpha", 0, "must be a positive, finite number"),
    ],
    ids=lambda part: repr(part)[:30],
)
def test_what_is_wrong_in_any_model_is_refused_when_read(name: str, value: Any, match: str) -> None:
    with pytest.raises(ScheduleError, match=match) as caught:
        parsed({"name": name, "value": value})
    assert str(caught.value).startswith(f"schedule: entry 1 ({name}), value: ")


@pytest.mark.parametrize("value", [1e-200, 1e-13, 1e200, 1e308])
@pytest.mark.parametrize("compensate", [False, True])
def test_an_alpha_beyond_all_measure_is_refused(value: float, compensate: bool) -> None:
    adapted = then(BARE, "set_attn_lora_rank", 4).spec
    for spec in (BARE, adapted):
        with pytest.raises(OperationError, match=r"alpha would become \S+; use a factor nearer to 1"):
            then(spec, "change_lora_alpha", value, compensate=compensate)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"residual": "keep"}, "residual: must be 'merge' or 'drop', is 'keep'"),
        ({"alpha": 0}, "alpha: must be a positive"),
        ({"alpah": 2}, "did you mean 'alpha'"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ScheduleError, match=match):
        parsed({"name": "set_attn_lora_rank", "value": 2, **options})


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("set_attn_lora_rank", 17, r"rank 17 is above 16, the smaller side of transformer.h.0.attn.c_attn \(16 x 48\)"),
        (
            "set_embedding_lora_rank",
            1e9,
            r"rank 1000000000 is above 16, .* transformer.wte \(32 x 16\).*use at most 16",
        ),
        (LAYER, ["mlp.*", 17], r"rank 17 is above 16, the smaller side of transformer.h.0.mlp.c_fc \(16 x 64\)"),
        (LAYER, ["attn.2", 2], "'attn.2' names no component of this model with 2 layers; it has attn.0 to attn.1"),
        (LAYER, ["attn", 2], "it has attn.0 to attn.1"),
        (LAYER, ["lm_head", 2], "'lm_head' shares its weights with 'wte': an adapter on 'wte' is on both; name that"),
        (
            "decrease_attn_lora_scaling",
            0.2,
            r"the divisor becomes 20, and 16 // 20 leaves no rank; use a larger value, or "
            "set_attn_lora_rank with 0",
        ),
        ("decrease_attn_lora_scaling", 5, r"the divisor becomes 0.8: rank 20 is above 16, .*use at most 16"),
        ("decrease_vocab_lora_scaling", 2, "no adapter on its embedding, .*; set_embedding_lora_rank makes one"),
    ],
    ids=lambda part: str(part)[:30],
)
def test_what_does_not_fit_this_model(name: str, value: Any, match: str) -> None:
    spec = then(BARE, "set_attn_lora_rank", 4).spec
    with pytest.raises(OperationError, match=match):
        then(spec, name, value)


def test_full_rank_is_allowed() -> None:
    assert ranks(then(BARE, "set_attn_lora_rank", 16).spec) == {16}
    narrow = ModelSpec(tiny_config(n_inner=8))
    with pytest.raises(
        OperationError, match=r"rank 9 is above 8, the smaller side of transformer.h.1.mlp.c_fc \(16 x 8\)"
    ):
        then(narrow, LAYER, ["mlp.1", 9])
    assert then(narrow, LAYER, ["mlp.1", 8]).spec.facts()["lora_rank"] == 8
