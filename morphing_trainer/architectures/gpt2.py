"""GPT-2 as `transformers` builds it. `Conv1D` weights are stored (in, out)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from morphing_trainer.architectures.axes import Architecture, reads, writes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_BLOCK = "transformer.h.{layer}."


def _width(config: PretrainedConfig) -> int:
    return int(config.n_inner) if config.n_inner is not None else 4 * int(config.n_embd)


def _with_width(config: PretrainedConfig, units: int) -> None:
    config.n_inner = units


def _depends_on_depth(config: PretrainedConfig) -> str | None:
    if config.scale_attn_by_inverse_layer_idx:
        return (
            "the model has scale_attn_by_inverse_layer_idx=True, so a block's attention depends on its position and "
            "blocks cannot be copied or inserted; start from a model without it"
        )
    return None


GPT2 = Architecture(
    model_type="gpt2",
    model_class="GPT2LMHeadModel",
    parameters={
        "transformer.wte.weight": (reads("vocab"), writes("hidden")),
        "transformer.wpe.weight": (reads("position"), writes("hidden")),
        _BLOCK + "ln_1.weight": (writes("hidden"),),
        _BLOCK + "ln_1.bias": (writes("hidden"),),
        _BLOCK + "attn.c_attn.weight": (reads("hidden"), writes("head", parts=3)),
        _BLOCK + "attn.c_attn.bias": (writes("head", parts=3),),
        _BLOCK + "attn.c_proj.weight": (reads("head"), writes("hidden")),
        _BLOCK + "attn.c_proj.bias": (writes("hidden"),),
        _BLOCK + "ln_2.weight": (writes("hidden"),),
        _BLOCK + "ln_2.bias": (writes("hidden"),),
        _BLOCK + "mlp.c_fc.weight": (reads("hidden"), writes("mlp")),
        _BLOCK + "mlp.c_fc.bias": (writes("mlp"),),
        _BLOCK + "mlp.c_proj.weight": (reads("mlp"), writes("hidden")),
        _BLOCK + "mlp.c_proj.bias": (writes("hidden"),),
        "transformer.ln_f.weight": (writes("hidden"),),
        "transformer.ln_f.bias": (writes("hidden"),),
        "lm_head.weight": (writes("vocab"), reads("hidden")),
    },
    components={
        "wte": ("transformer.wte.",),
        "wpe": ("transformer.wpe.",),
        "attn": (_BLOCK + "attn.",),
        "mlp": (_BLOCK + "mlp.",),
        "ln_1": (_BLOCK + "ln_1.",),
        "ln_2": (_BLOCK + "ln_2.",),
        "h": (_BLOCK,),
        "ln_f": ("transformer.ln_f.",),
        "lm_head": ("lm_head.",),
    },
    adaptable={
        "attn": (_BLOCK + "attn.c_attn", _BLOCK + "attn.c_proj"),
        "mlp": (_BLOCK + "mlp.c_fc", _BLOCK + "mlp.c_proj"),
        "wte": ("transformer.wte",),
        "wpe": ("transformer.wpe",),
        "lm_head": ("lm_head",),
    },
    embeddings=frozenset({"transformer.wte", "transformer.wpe"}),
    tied={"lm_head.weight": "transformer.wte.weight"},
    residual_writers=tuple(
        _BLOCK + name for name in ("attn.c_proj.weight", "attn.c_proj.bias", "mlp.c_proj.weight", "mlp.c_proj.bias")
    ),
    depth="n_layer",
    width=_width,
    with_width=_with_width,
    depends_on_depth=_depends_on_depth,
)
