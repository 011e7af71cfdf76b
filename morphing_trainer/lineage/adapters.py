"""LoRA adapters of a description: a PEFT `LoraConfig` in one canonical form, and the modules that PEFT makes from it.

The canonical form names every adapted module in full in `target_modules`; `r` is the most frequent rank, `lora_alpha`
the alpha that new adapters get, and what differs stands in `rank_pattern` and `alpha_pattern`. It may name no module at
all: it then holds the options (alpha, dropout, rsLoRA) of adapters to come.

Tied embeddings: an adapter on the embedding adapts the shared matrix, so the head sees E + s * (B A)^T just as the
embedding does, and a merge changes that one matrix once. PEFT has no such adapter. Its two, one on either side, are
built, and the head's matrices are made transposed views of the embedding's, so that there is one pair of parameters.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from peft import LoraConfig, PeftModel, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from morphing_trainer.architectures import ADAPTER
from morphing_trainer.errors import ModelError
from morphing_trainer.lineage.sites import Site

_WRITTEN = ("r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "rank_pattern", "alpha_pattern")
"""What the canonical form sets."""

_PLAIN: Mapping[str, Any] = {
    "bias": "none",
    "use_dora": False,
    "lora_bias": False,
    "modules_to_save": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "layer_replication": None,
    "use_qalora": False,
    "alora_invocation_tokens": None,
}
"""Options of PEFT that make an adapter something else than W + s * B A."""


_EXPECTED = ".*(tie_word_embeddings|fan_in_fan_out).*"
"""PEFT warns of a tied layer, which is tied here, and of mixed layouts of weights, which it then puts right itself."""


def canonical(sites: Mapping[str, Site], like: LoraConfig | None = None, alpha: float | None = None) -> LoraConfig:
    """The adapters `sites` (module -> site) with the options of `like`, and `alpha` for those to come."""
    like = like or LoraConfig()
    ranks = Counter(site.rank for site in sites.values())
    rank = max(ranks, key=lambda r: (ranks[r], r)) if ranks else like.r
    default = _whole(like.lora_alpha if alpha is None else alpha)
    return LoraConfig(
        task_type="CAUSAL_LM",
        fan_in_fan_out=True,
        r=rank,
        lora_alpha=default,  # type: ignore[arg-type]  # PEFT computes with any number
        lora_dropout=like.lora_dropout,
        use_rslora=like.use_rslora,
        target_modules=list(sites),
        rank_pattern={module: site.rank for module, site in sites.items() if site.rank != rank},
        alpha_pattern={module: _whole(site.alpha) for module, site in sites.items() if site.alpha != default},
    )


def sites_of(adapter: LoraConfig | None) -> dict[str, Site]:
    """Module -> rank and alpha of a canonical config, modules in order of their names."""
    if adapter is None:
        return {}
    ranks, alphas = adapter.rank_pattern or {}, adapter.alpha_pattern or {}
    return {
        module: Site(ranks.get(module, adapter.r), alphas.get(module, adapter.lora_alpha))
        for module in sorted(adapter.target_modules or ())
    }


def written(adapter: LoraConfig) -> dict[str, Any]:
    """A canonical config as plain JSON."""
    return {name: getattr(adapter, name) for name in _WRITTEN} | {
        "target_modules": sorted(adapter.target_modules or ())
    }


def read(data: Mapping[str, Any]) -> LoraConfig:
    """The canonical config that `written` wrote.

    Raises:
        TypeError, KeyError: if it is not one.
    """
    options = {name: data[name] for name in _WRITTEN}
    return LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True, **options)


# --- Modules ---


class Transposed(nn.Module):
    """Parametrization of a matrix that is another one, transposed."""

    def forward(self, matrix: Tensor) -> Tensor:
        return matrix.t()

    def right_inverse(self, matrix: Tensor) -> Tensor:
        return matrix.t()


def tied_names(embedding: str, head: str) -> dict[str, str]:
    """Parameters of the head's adapter -> those of the embedding's that they are, for modules with tied weights."""
    original = f"{ADAPTER}.parametrizations.weight.original"
    return {
        f"{head}.lora_A.{original}": f"{embedding}.lora_embedding_B.{ADAPTER}",
        f"{head}.lora_B.{original}": f"{embedding}.lora_embedding_A.{ADAPTER}",
    }


def inject(model: PreTrainedModel, adapter: LoraConfig, tied: Iterable[tuple[str, str]]) -> None:
    """Let PEFT put the adapters into `model`, on its device.

    Args:
        tied: (embedding, head) modules that share their weight and, if the embedding has an adapter, that too.
    """
    full = with_heads(adapter, tied)
    if full.target_modules:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_EXPECTED)
            inject_adapter_in_model(copy.deepcopy(full), model, ADAPTER)
    for embedding, head in tied:
        if embedding not in sites_of(adapter):
            continue
        source: Any = model.get_submodule(embedding)
        target: Any = model.get_submodule(head)
        for matrices, owner in ((target.lora_A, source.lora_embedding_B), (target.lora_B, source.lora_embedding_A)):
            parametrize.register_parametrization(matrices[ADAPTER], "weight", Transposed())
            matrices[ADAPTER].parametrizations.weight.original = owner[ADAPTER]
    # As transformers' own `add_adapter` leaves a model.
    adapted: Any = model
    adapted.peft_config = {ADAPTER: full}
    adapted._hf_peft_config_loaded = bool(full.target_modules)


def with_heads(adapter: LoraConfig, tied: Iterable[tuple[str, str]]) -> LoraConfig:
    """The config that PEFT needs for the same function: with an adapter on the head of every adapted tied embedding."""
    sites = sites_of(adapter)
    return canonical(sites | {head: sites[embedding] for embedding, head in tied if embedding in sites}, adapter)


def describe(model: nn.Module, tied: Mapping[str, str]) -> LoraConfig | None:
    """The canonical config of a live model's adapters, None if it has none and holds no options for any.

    Args:
        tied: head -> embedding, for modules with tied weights.

    Raises:
        ModelError: for adapters that are not plain LoRA, or not one set of them.
    """
    configs = getattr(model, "peft_config", None)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
    if not configs:
        if layers:
            raise ModelError(f"model: {next(iter(layers))} carries an adapter, but the model has no peft_config.")
        return None
    if list(configs) != [ADAPTER]:
        raise ModelError(
            f"model: has adapters named {', '.join(configs)}; one set of adapters can be morphed, under PEFT's usual "
            f"name {ADAPTER!r}. Merge the others first."
        )
    check_plain(configs[ADAPTER], "model")
    sites = _sites(layers)
    for head, embedding in tied.items():
        if sites.keys() & {head, embedding} and not _is_tied(model, embedding, head):
            raise _one_sided(embedding, head)
        sites.pop(head, None)
    return canonical(sites, configs[ADAPTER])


def resolved(config: LoraConfig, model: PreTrainedModel, tied: Mapping[str, str]) -> LoraConfig:
    """The canonical form of any config, found by letting PEFT apply it to `model` (best on the meta device).

    Raises:
        ModelError: if it is not plain LoRA, or adapts one side of a shared weight only.
    """
    check_plain(config, "model")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_EXPECTED)
        inject_adapter_in_model(copy.deepcopy(config), model, ADAPTER)
    sites = _sites({name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)})
    for head, embedding in tied.items():
        if (head in sites) != (embedding in sites):
            raise _one_sided(embedding, head)
        sites.pop(head, None)
    return canonical(sites, config)


def check_plain(config: object, where: str) -> None:
    """Refuse adapters that are not W + s * B A.

    Raises:
        ModelError: saying what they are.
    """
    if not isinstance(config, LoraConfig):
        kind = type(config).__name__.removesuffix("Config")
        raise ModelError(f"{where}: its adapters are {kind}; LoRA can be morphed.")
    if special := [name for name, plain in _PLAIN.items() if (getattr(config, name, plain) or plain) != plain]:
        raise ModelError(
            f"{where}: its LoRA config sets {', '.join(special)}, which a rank change or merge would not keep; plain "
            "LoRA can be morphed."
        )


def _sites(layers: Mapping[str, BaseTunerLayer]) -> dict[str, Site]:
    sites: dict[str, Site] = {}
    for name, layer in layers.items():
        if not isinstance(layer, LoraLayer) or layer.lora_variant:
            raise ModelError(f"model: the adapter of {name} is not plain LoRA; only that can be morphed.")
        if layer.merged_adapters:
            raise ModelError(f"model: the adapter of {name} is merged for inference; call unmerge_adapter() first.")
        if layer.disable_adapters or ADAPTER not in layer.active_adapters:
            raise ModelError(f"model: the adapter of {name} is switched off; switch it on first.")
        site = Site(layer.r[ADAPTER], layer.lora_alpha[ADAPTER])
        if not math.isclose(layer.scaling[ADAPTER], site.scaling(layer.use_rslora[ADAPTER])):
            raise ModelError(
                f"model: the adapter of {name} counts {layer.scaling[ADAPTER]:g} times, which is not what its alpha "
                "says; call unscale_layer() first, and use change_lora_alpha."
            )
        sites[name] = site
    return sites


def _one_sided(embedding: str, head: str) -> ModelError:
    return ModelError(
        f"model: {embedding} and {head} share their weight, but not their adapter. PEFT adapts each side by itself, "
        "and no merge could keep that. Pass the model without this adapter and let add_adapters put one on both."
    )


def _is_tied(model: nn.Module, embedding: str, head: str) -> bool:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = tied_names(embedding, head)
    return all(name in parameters and parameters[name] is parameters.get(owner) for name, owner in names.items())


def bare(model: nn.Module) -> nn.Module:
    """The model itself if it is wrapped as a `PeftModel`; its adapters stay in it."""
    inner: nn.Module = model.get_base_model() if isinstance(model, PeftModel) else model
    return inner


def is_quantised(model: nn.Module) -> bool:
    return bool(
        getattr(model, "is_quantized", False) or getattr(getattr(model, "config", None), "quantization_config", 0)
    )


def drawn_std(is_embedding: bool, fan_in: int) -> float:
    """Standard deviation of the matrix of a new adapter that does not start at zero: that of PEFT's own draw."""
    return 1.0 if is_embedding else (3.0 * fan_in) ** -0.5


def _whole(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value
