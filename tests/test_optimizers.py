"""Optimizers by name, their options and defaults, and which parameters decay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop
from transformers import Trainer, TrainingArguments

from morphing_trainer import LoraArguments, MorphingConfig, add_adapters
from morphing_trainer.errors import ConfigError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.optimizers import class_and_options, decayed, marked
from tests.support import tiny_model, trainer


def config(**options: Any) -> MorphingConfig:
    return MorphingConfig("run", use_cpu=True, report_to="none", **options)


@pytest.mark.parametrize(
    ("given", "kind", "decay", "options"),
    [
        ({}, AdamW, 0.01, {"fused": True, "betas": (0.9, 0.999), "eps": 1e-8}),
        ({"optimizer": "adamw"}, AdamW, 0.01, {"fused": True}),
        ({"optimizer": "adam", "adam_beta1": 0.8}, Adam, 0.0, {"fused": True, "betas": (0.8, 0.999)}),
        ({"optimizer": "adagrad"}, Adagrad, 0.0, {}),
        ({"optimizer": "sgd"}, SGD, 0.0, {"momentum": 0.9}),
        ({"optimizer": "sgd", "momentum": 0.5}, SGD, 0.0, {"momentum": 0.5}),
        ({"optimizer": "sgd", "optim_args": "momentum=0.4,nesterov=true"}, SGD, 0, {"momentum": 0.4, "nesterov": True}),
        ({"optimizer": "rmsprop"}, RMSprop, 0.0, {"momentum": 0.0}),
        ({"optimizer": "rmsprop", "optim_args": "centered=true, eps=0.9"}, RMSprop, 0, {"centered": True, "eps": 0.9}),
        ({"optimizer": "adam", "optim_args": "amsgrad=true"}, Adam, 0.0, {"amsgrad": True}),
        ({"optim_args": "amsgrad=true"}, AdamW, 0.01, {"amsgrad": True}),
        ({"optim": "sgd"}, SGD, 0.0, {"momentum": 0.0}),
        ({"optim": "adamw_torch"}, AdamW, 0.01, {}),
        ({"optimizer": "adamw", "optim": "adamw_torch"}, AdamW, 0.01, {}),
        ({"optimizer": "adam", "weight_decay": 0.2}, Adam, 0.2, {}),
        ({"weight_decay": 0.0}, AdamW, 0.0, {}),
    ],
)  # fmt: skip
def test_names_and_defaults(given: dict[str, Any], kind: type, decay: float, options: dict[str, Any]) -> None:
    args = config(learning_rate=0.5, **given)
    made, found = class_and_options(args)
    assert made is kind
    assert args.weight_decay == decay
    assert {"lr": 0.5, **options}.items() <= found.items()
    made([torch.nn.Parameter(torch.zeros(2))], **found)
    resolved = {name: getattr(args, name) for name in ("optimizer", "optim", "momentum", "weight_decay")}
    again = config(learning_rate=0.5, **{**given, **resolved})
    assert class_and_options(again) == (made, found), "resolved values say the same"


def test_the_default_is_that_of_trainer() -> None:
    plain = TrainingArguments("run", use_cpu=True, report_to="none")
    assert class_and_options(config()) == Trainer.get_optimizer_cls_and_kwargs(plain)


def test_every_other_optimizer_of_trainer_goes_by_its_name_there() -> None:
    args = config(optim="adafactor")
    assert class_and_options(args)[0].__name__ == "Adafactor"
    assert (args.optimizer, args.momentum, args.weight_decay) == (None, None, 0.0)
    assert config(optim="stable_adamw").weight_decay == 0.01


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": "adm"}, r"optimizer: unknown 'adm'; did you mean 'adam'\?"),
        ({"optimizer": "sgd", "optim": "adagrad"}, "optimizer: 'sgd' stands beside optim: 'adagrad'"),
        ({"optimizer": "adam", "optim": "adamw_torch"}, "optimizer: 'adam' stands beside optim: 'adamw_torch'"),
        ({"momentum": 0.9}, "momentum: adamw.* has none to set; it is an option of sgd and rmsprop"),
        ({"optimizer": "sgd", "momentum": 1.0}, "momentum: must be below 1, is 1.0"),
        ({"optimizer": "sgd", "momentum": -0.1}, "momentum: must be at least 0"),
        ({"optimizer": "sgd", "momentum": 0.5, "optim_args": "momentum=0.5"}, "momentum: stands beside momentum in"),
        ({"optimizer": "sgd", "optim_args": "moment=0.5"}, "sgd has no option 'moment'; did you mean 'momentum'"),
        ({"optimizer": "sgd", "optim_args": "momentum"}, "'momentum' is not of the form name=value"),
        ({"optimizer": "sgd", "optim_args": "nesterov=yes"}, "nesterov must be true or false, is 'yes'"),
        ({"optimizer": "rmsprop", "optim_args": "alpha=x"}, "alpha must be a number, is 'x'"),
        ({"optim_args": "weight_decay=0.1"}, "weight_decay has no effect here; give it as weight_decay"),
        ({"optim": "sgd", "optim_args": "nesterov=true"}, "optimizer: SGD cannot be made: Nesterov"),
        ({"weight_decay": -1.0}, "weight_decay: must be at least 0"),
    ],
)
def test_what_would_be_ignored_or_refused_is_an_error_at_once(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**given)


STILL = ("bias", "ln_", "wte", "wpe")


@pytest.mark.parametrize("tied", [True, False])
def test_matrices_that_are_no_embeddings_decay(tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    found = decayed(ModelSpec.of(model))
    assert found == {n for n, _ in model.named_parameters() if not any(part in n for part in STILL)}
    assert ("lm_head.weight" in found) is not tied
    assert "transformer.h.0.attn.c_attn.weight" in found


def test_adapters_decay_as_the_weight_that_they_adapt() -> None:
    arguments = LoraArguments(attn_lora_rank_divisor=4, vocab_lora_rank_divisor=4)
    model = add_adapters(tiny_model(), arguments)
    found = decayed(ModelSpec.of(model))
    lora = {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert {name for name in lora if ".attn." in name} == lora & found
    assert {name for name in lora if ".wte." in name} == lora - found != set()


def test_a_mark_takes_a_parameter_out_and_its_adapter_with_it() -> None:
    model = tiny_model()
    marks = ("transformer.h.0.attn.c_attn.weight", "transformer.h.1.mlp.c_fc.weight")
    for name in marks:
        model.get_parameter(name).skip_weight_decay = True  # type: ignore[attr-defined]
    assert marked(model) == {*marks}
    plain = decayed(ModelSpec.of(model))
    assert decayed(ModelSpec.of(model), marked(model)) == plain - {*marks}
    adapted = add_adapters(model, LoraArguments(attn_lora_rank_divisor=4))
    found = decayed(ModelSpec.of(adapted), marked(adapted))
    assert "transformer.h.1.attn.c_attn.lora_A.default.weight" in found
    assert not [name for name in found if name.startswith("transformer.h.0.attn.c_attn")]
    assert "transformer.h.1.mlp.c_fc.weight" not in found


def test_an_optimizer_whose_package_is_missing_is_refused_by_name(tmp_path: Path) -> None:
    """`lomo_optim` is no dependency of this library."""
    with pytest.raises(ConfigError, match="optim: 'lomo' cannot be used"):
        trainer(tmp_path, [{"name": "change_lr", "value": 2, "max_wait_iters": 1}], optim="lomo")
