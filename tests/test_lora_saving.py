"""`save_model`: what stands on disk is what the model computes, whoever loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from morphing_trainer import LoraArguments, add_adapters, morph, save_model
from morphing_trainer.models import load_model
from tests.conformance.common import distance, logits, train
from tests.support import by_peft, tiny_model

# PEFT's loading, not ours: of a tied layer, of layouts that it puts right, and of a model that brings its adapters.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(tie_word_embeddings|fan_in_fan_out|Already found a `peft_config`).*"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


def trained(tied: bool = True) -> Any:
    """A model whose adapters were merged and started anew, so that its base is not the one it began with."""
    arguments = LoraArguments(attn_lora_rank_divisor=4, vocab_lora_rank_divisor=8, use_rslora=True)
    model: Any = add_adapters(tiny_model(tie_word_embeddings=tied), arguments)
    for seed in range(2):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        train(model, optimizer, 3)
        if not seed:
            model = morph(model, {"name": "merge_lora_weights", "value": None}).model
    return model.eval()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_base_and_adapters(tied: bool, tmp_path: Path) -> None:
    model = trained(tied)
    save_model(model, tmp_path, merge=False)
    for load in (AutoModelForCausalLM.from_pretrained, AutoPeftModelForCausalLM.from_pretrained):
        assert distance(logits(load(tmp_path)), logits(model)) < 1e-5
    again = load_model(str(tmp_path))
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_merged_over_an_earlier_one_with_adapters(tied: bool, tmp_path: Path) -> None:
    model = trained(tied)
    save_model(model, tmp_path, merge=False)
    save_model(model, tmp_path)
    assert not list(tmp_path.glob("adapter*"))
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert not hasattr(loaded, "peft_config")
    assert distance(logits(loaded), logits(model)) < 1e-5


def test_a_relative_folder_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained()
    monkeypatch.chdir(tmp_path)
    save_model(model, "saved", merge=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert distance(logits(loaded), logits(model)) < 1e-5


def test_adapters_get_the_type_of_new_ones(tmp_path: Path) -> None:
    model = trained().to(torch.bfloat16)
    save_model(model, tmp_path, merge=False)
    for dtype, expected in (("float32", torch.float32), ("bfloat16", torch.float32), ("float64", torch.float64)):
        loaded = load_model(str(tmp_path), dtype=dtype)
        assert {p.dtype for name, p in loaded.named_parameters() if "lora_" in name} == {expected}


def test_a_model_that_peft_has_wrapped(tmp_path: Path) -> None:
    wrapped = by_peft(tiny_model(), r=2, target_modules=["c_attn"])
    save_model(wrapped, tmp_path, merge=False)
    assert distance(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(wrapped)) < 1e-5
    frozen = add_adapters(wrapped, LoraArguments(lora_freeze_base="all"))
    assert all(p.requires_grad == ("lora_" in name) for name, p in frozen.named_parameters())
