"""The count from a description is the count of the operations that ran."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, PreTrainedModel

from morphing_trainer import LoraArguments, add_adapters, morph
from morphing_trainer.flops import flops_per_token, step_flops
from morphing_trainer.lineage import ModelSpec
from tests.support import tiny_model

LENGTH, SAMPLES = 12, 3
ALL = LoraArguments(lora_r=4, lora_target_modules=["c_attn", "c_proj", "c_fc", "wte", "wpe"])


def counted(model: PreTrainedModel, samples: int = SAMPLES) -> tuple[int, int]:
    """Of a forward pass, and of the way back, by torch."""
    tokens = torch.randint(model.config.vocab_size, (samples, LENGTH))
    with FlopCounterMode(display=False) as forward:
        loss = model(input_ids=tokens, labels=tokens).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def plain(**options: object) -> PreTrainedModel:
    return tiny_model(attn_implementation="eager", **options)


def frozen(*components: str) -> PreTrainedModel:
    return morph(plain(), {"name": "freeze_layer", "value": list(components)})[0]


def adapted(arguments: LoraArguments, *operations: dict[str, object]) -> PreTrainedModel:
    model = add_adapters(plain(), arguments)
    for operation in operations:
        model = morph(model, operation)[0]
    return model


@pytest.mark.parametrize(
    "make",
    [
        plain,
        lambda: plain(tie_word_embeddings=False),
        lambda: plain(n_inner=24, n_head=1),
        lambda: frozen("wte", "wpe"),
        lambda: frozen("wte", "wpe", "h.0", "attn.1"),
        lambda: frozen("wte", "wpe", "h.*"),
        lambda: frozen("mlp.*"),
        lambda: adapted(LoraArguments(attn_lora_rank_divisor=4)),
        lambda: adapted(LoraArguments(4, 4)),
        lambda: adapted(ALL),
        lambda: adapted(LoraArguments(lora_r=4, lora_freeze_base="all")),
        lambda: adapted(LoraArguments(4, 4), {"name": "stack_layers", "value": 2}, {"name": "widen_mlp", "value": 2}),
        lambda: adapted(LoraArguments(4, 4), {"name": "freeze_layer", "value": ["wte", "wpe", "h.0"]}),
    ],
)
def test_counted_as_torch_counts(make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    found = step_flops(ModelSpec.of(model), LENGTH, SAMPLES)
    assert (found.forward, found.backward) == counted(model)


def test_the_way_attention_is_computed_makes_no_difference() -> None:
    """Torch does not count its fused kernel for CPUs; the one that it falls back to is made of products."""
    model = tiny_model(attn_implementation="sdpa")
    found = step_flops(ModelSpec.of(model), LENGTH, SAMPLES)
    with sdpa_kernel(SDPBackend.MATH):
        assert (found.forward, found.backward) == counted(model)


def test_of_a_token() -> None:
    spec = ModelSpec.of(plain())
    assert flops_per_token(spec, LENGTH) * LENGTH * SAMPLES == step_flops(spec, LENGTH, SAMPLES).total


def test_without_weights() -> None:
    """A model of any size is counted from its description: GPT-2 small, by hand."""
    spec = ModelSpec(GPT2Config())
    matrices = 12 * (768 * 3 * 768 + 768 * 768 + 2 * 768 * 3072) + 50257 * 768
    attention = 12 * 2 * 1024 * 768
    assert flops_per_token(spec, 1024) == 3 * 2 * (matrices + attention)
