"""Every way to ask for adapters wrongly: the message says where, what, and what instead."""

from __future__ import annotations

import re
from typing import Any

import pytest

from morphing_trainer import LoraArguments, add_adapters
from morphing_trainer.errors import ConfigError
from tests.support import tiny_model
from tests.test_lora import with_adapters

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "negative divisor": ({"attn_lora_rank_divisor": -1}, "attn_lora_rank_divisor: must be at least 0, is -1"),
    "no rank left": (
        {"vocab_lora_rank_divisor": 17},
        "vocab_lora_rank_divisor: 16 // 17 leaves no rank; use at most 16, or 0 for no adapter",
    ),
    "rank 0": ({"lora_r": 0}, "lora_r: must be at least 1, is 0; leave it out for no adapters"),
    "rank above the sides": (
        {"lora_r": 17},
        "lora_r: rank 17 is above 16, the smaller side of transformer.h.0.attn.c_attn (16 x 48): a larger one adds "
        "nothing; use at most 16, or train the weight itself",
    ),
    "part of a rank": ({"lora_r": 2.5}, "lora_r: must be a whole number, is 2.5"),
    "rank as text": ({"lora_r": "4"}, "lora_r: must be a whole number, is '4'"),
    "true": ({"attn_lora_rank_divisor": True}, "attn_lora_rank_divisor: must be a whole number, is True"),
    "alpha as text": ({"lora_alpha": "8"}, "lora_alpha: must be a number, is '8'"),
    "alpha 0": ({"lora_r": 2, "lora_alpha": 0}, "lora_alpha: must be a positive number, is 0"),
    "alpha nan": ({"lora_r": 2, "lora_alpha": float("nan")}, "lora_alpha: must be a positive number, is nan"),
    "dropout": ({"lora_r": 2, "lora_dropout": 1.0}, "lora_dropout: must be at least 0 and below 1, is 1.0"),
    "freeze": (
        {"lora_r": 2, "lora_freeze_base": "target"},
        "lora_freeze_base: unknown 'target'; did you mean 'targets'?",
    ),
    "two ways": (
        {"lora_r": 2, "attn_lora_rank_divisor": 4},
        "lora_r: stands beside a rank divisor; give one or the other",
    ),
    "no rank": ({"lora_target_modules": ["c_attn"]}, "lora_target_modules: have no rank; give lora_r"),
    "no target": (
        {"lora_r": 2, "lora_target_modules": []},
        "lora_target_modules: names no module; leave it out for c_attn",
    ),
    "misspelt": (
        {"lora_r": 2, "lora_target_modules": ["c_atn"]},
        "lora_target_modules: the model has no module 'c_atn'; did you mean 'c_attn'?",
    ),
    "of another family": (
        {"lora_r": 2, "lora_target_modules": ["q_lin"]},
        "lora_target_modules: the model has no module 'q_lin'; valid are c_attn, c_fc, c_proj, wpe, wte",
    ),
    "no layer 7": (
        {"lora_r": 2, "lora_target_modules": ["h.7.attn.c_attn"]},
        "lora_target_modules: the model has no module 'h.7.attn.c_attn'",
    ),
    "norm": (
        {"lora_r": 2, "lora_target_modules": "ln_1"},
        "lora_target_modules: 'ln_1' (LayerNorm) cannot carry an adapter; modules that can are c_attn, c_fc, c_proj, "
        "wpe, wte",
    ),
    "block": ({"lora_r": 2, "lora_target_modules": ["attn"]}, "'attn' (GPT2Attention) cannot carry an adapter"),
    "tied head": (
        {"lora_r": 2, "lora_target_modules": ["lm_head"]},
        "lora_target_modules: 'lm_head' shares its weights with 'transformer.wte': name that, its adapter is on both",
    ),
    "nothing to train": (
        {"lora_freeze_base": "all"},
        "lora_freeze_base: nothing would be left to train, all of the base model is frozen and no adapter is asked "
        "for; give lora_r or a divisor",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case: str) -> None:
    arguments, message = WRONG[case]
    with pytest.raises(ConfigError) as caught:
        with_adapters(**arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_problem_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        with_adapters(attn_lora_rank_divisor=-1, vocab_lora_rank_divisor=99, lora_alpha=-2, lora_dropout=2)
    names = [line.partition(":")[0] for line in str(caught.value).splitlines()]
    assert names == ["attn_lora_rank_divisor", "vocab_lora_rank_divisor", "lora_alpha", "lora_dropout"]
    with pytest.raises(ConfigError) as caught:
        with_adapters(lora_r=2, lora_target_modules=["c_atn", "wte", "ln_f"])
    lines = str(caught.value).splitlines()
    assert ["'c_atn'" in lines[0], "'ln_f'" in lines[1], len(lines)] == [True, True, 2]


def test_a_divisor_that_fits_the_hidden_size_but_not_the_vocabulary() -> None:
    with pytest.raises(ConfigError, match=r"^vocab_lora_rank_divisor: rank 16 is above 8, the smaller side of .*wte"):
        with_adapters(tiny_model(vocab_size=8), vocab_lora_rank_divisor=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lora_r": 2}, "lora_r: the model has adapters already; leave it out, or start from a merged model"),
        ({"vocab_lora_rank_divisor": 2}, "vocab_lora_rank_divisor: the model has adapters already"),
        ({"lora_alpha": 5}, "lora_alpha: is 5, but the model has adapters already, with 8; leave it out"),
        ({"lora_dropout": 0.5}, "lora_dropout: is 0.5, but the model has adapters already, with 0.0"),
        ({"use_rslora": True}, "use_rslora: is True, but the model has adapters already, with False"),
    ],
)
def test_wrong_for_a_model_that_has_adapters(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        with_adapters(with_adapters(lora_r=2), **arguments)


@pytest.mark.parametrize("targets", [3, [3], ["c_attn", None], {"c_attn": 1}])
def test_targets_that_are_no_names_are_refused(targets: Any) -> None:
    with pytest.raises(ConfigError, match=r"lora_target_modules: must be names of modules, such as \['c_attn', "):
        add_adapters(tiny_model(), LoraArguments(lora_r=2, lora_target_modules=targets))
