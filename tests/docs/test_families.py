"""The table of `docs/howto/architecture.md`, and one of a family with rotary positions, held to more than there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from generation.blocks import read_blocks
from generation.outputs import ROOT
from transformers import GPT2Config, GPTNeoXConfig, GPTNeoXForCausalLM, OPTConfig, OPTForCausalLM

from morphing_trainer import MorphingTrainer, morph
from morphing_trainer.architectures import ARCHITECTURES, GPT2, Architecture, reads, writes
from morphing_trainer.errors import CheckpointError
from morphing_trainer.flops import step_flops
from morphing_trainer.lineage import ModelSpec
from tests.support import LENGTH, VOCAB, Tokens, arguments, same, weights

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": LENGTH,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    kept = dict(ARCHITECTURES)
    yield
    ARCHITECTURES.clear()
    ARCHITECTURES.update(kept)


@pytest.fixture
def opt() -> Architecture:
    """The page's own table, registered."""
    block = next(block for block in read_blocks(ROOT, "docs/howto/architecture.md") if block.language == "python")
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(block.text, block.page, "exec", dont_inherit=True), names)
    found = names["OPT"]
    assert isinstance(found, Architecture)
    return found


def small_opt(**changes: Any) -> OPTForCausalLM:
    torch.manual_seed(0)
    return OPTForCausalLM(OPTConfig(**SIZES | {"ffn_dim": 32, "word_embed_proj_dim": 16, "dropout": 0.0} | changes))


SCHEDULE = [
    {"name": "stack_layers", "value": 2, "init": "identity", "max_wait_iters": 3},
    {"name": "set_attn_lora_rank", "value": 4, "max_wait_iters": 3},
    {"name": "merge_lora_weights", "restart": False, "max_wait_iters": 2},
    {"name": "widen_mlp", "value": 2, "max_wait_iters": 0},
]


@pytest.mark.usefixtures("opt")
def test_a_run_is_resumed_to_the_bit(tmp_path: Path) -> None:
    def run(model: OPTForCausalLM) -> MorphingTrainer:
        options = arguments(tmp_path / "run", save_strategy="steps", save_steps=7)
        return MorphingTrainer(
            model, options, train_dataset=Tokens(), eval_dataset=Tokens(20, seed=2), schedule=SCHEDULE
        )

    whole = run(small_opt())
    whole.train()
    again = run(small_opt())
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-7"))
    assert same(weights(again), weights(whole))
    assert (whole.model.config.num_hidden_layers, whole.model.config.ffn_dim) == (4, 64)
    with pytest.raises(CheckpointError, match="num_attention_heads"):
        run(small_opt(num_attention_heads=4)).train(resume_from_checkpoint=True)


@pytest.mark.usefixtures("opt")
def test_computation_is_that_of_a_gpt2_of_the_same_shape() -> None:
    """Queries, keys and values are one matrix there and three here; products are the same."""
    spec = ModelSpec.of(small_opt())
    twin = ModelSpec(GPT2Config(n_layer=2, n_embd=16, n_head=2, n_inner=32, vocab_size=VOCAB))
    assert step_flops(spec, 8) == step_flops(twin, 8)


def linear(name: str, into: str, out: str) -> dict[str, Any]:
    return {f"{name}.weight": (writes(out), reads(into)), f"{name}.bias": (writes(out),)}


def test_what_modules_compute_when_they_are_made_goes_along() -> None:
    """Frequencies of rotary positions are in no checkpoint, and come to nothing on the meta device."""
    block = "gpt_neox.layers.{layer}."
    norms = ("gpt_neox.final_layer_norm", f"{block}input_layernorm", f"{block}post_attention_layernorm")
    writers = (f"{block}attention.dense", f"{block}mlp.dense_4h_to_h")

    def with_width(config: Any, units: int) -> None:
        config.intermediate_size = units

    ARCHITECTURES["gpt_neox"] = replace(
        GPT2,
        model_type="gpt_neox",
        model_class="GPTNeoXForCausalLM",
        parameters={
            "gpt_neox.embed_in.weight": (reads("vocab"), writes("hidden")),
            "lm_head.weight": (writes("vocab"), reads("hidden")),
            **{f"{name}.{part}": (writes("hidden"),) for name in norms for part in ("weight", "bias")},
            **linear(f"{block}attention.query_key_value", "hidden", "head"),
            **linear(f"{block}attention.dense", "head", "hidden"),
            **linear(f"{block}mlp.dense_h_to_4h", "hidden", "mlp"),
            **linear(f"{block}mlp.dense_4h_to_h", "mlp", "hidden"),
        },
        adaptable={},
        embeddings=frozenset({"gpt_neox.embed_in"}),
        tied={},
        residual_writers=tuple(f"{name}.{part}" for name in writers for part in ("weight", "bias")),
        depth="num_hidden_layers",
        width=lambda config: int(config.intermediate_size),
        with_width=with_width,
        depends_on_depth=lambda config: None,
    )
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, intermediate_size=32)).double().eval()
    tokens = torch.arange(LENGTH)[None]
    before = model(tokens).logits
    for operation in ({"name": "stack_layers", "value": 2, "init": "identity"}, {"name": "widen_mlp", "value": 2}):
        model = morph(model, operation).model.eval()
        torch.testing.assert_close(model(tokens).logits, before, rtol=0, atol=1e-12)
