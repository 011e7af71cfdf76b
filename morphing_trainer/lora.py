"""LoRA adapters at the beginning and at the end of a run: put on a model, loaded, merged and saved.

While a run goes on, the operations of the family "LoRA" change them.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from morphing_trainer.checkpoint import adapters
from morphing_trainer.engine import dressed, hand_on_marks
from morphing_trainer.errors import CheckpointError, ConfigError, MorphError
from morphing_trainer.lineage import AdapterChange, ModelSpec, Site, readapt, transplant_weights
from morphing_trainer.lineage.adapters import bare, canonical, resolved
from morphing_trainer.lora_arguments import LoraArguments, asked_ranks, check_arguments
from morphing_trainer.operations.base import draw_seed


def add_adapters(model: PreTrainedModel, arguments: LoraArguments, seed: int = 0) -> PreTrainedModel:
    """The model with the adapters that `arguments` ask for, same function. Weights are shared with `model`.

    Args:
        model: a supported model. If it has adapters, they stay (those of a `PeftModel` in the model itself, which is
            returned), and `arguments` can only ask that all of the base be frozen; they thaw nothing.
        seed: of the adapters' random matrices; the global random state is neither read nor changed.

    Raises:
        ConfigError: for arguments that exclude each other, or do not fit the model.
        ModelError: if the model is not supported.
    """
    inner = bare(model)
    assert isinstance(inner, PreTrainedModel)
    model, spec = inner, ModelSpec.of(inner)
    check_arguments(spec, arguments)
    if arguments == LoraArguments():
        return model
    start, new = spec, spec
    if not spec.sites:
        options = LoraConfig(lora_dropout=arguments.lora_dropout, use_rslora=arguments.use_rslora)
        start = ModelSpec(spec.config, spec.frozen, canonical({}, options, alpha=arguments.lora_alpha))
        sites = {module: Site(rank, arguments.lora_alpha) for module, rank in asked_ranks(spec, arguments).items()}
        new = start.readapted(sites, attn=arguments.attn_lora_rank_divisor, wte=arguments.vocab_lora_rank_divisor)
    lineage = readapt(start, new, AdapterChange(draw_seed(torch.Generator().manual_seed(seed))))
    frozen = lineage.inherit(spec.frozen)
    if arguments.lora_freeze_base == "all":
        frozen |= {name for name in new.shapes if not new.adapter_at(name)}
    new = new.evolve(frozen)
    if new.trainable == 0:
        raise ConfigError(
            "lora_freeze_base: nothing would be left to train, all of the base model is frozen and no adapter is asked "
            "for; give lora_r or a divisor"
        )
    old = dict(model.named_parameters())
    adapted = dressed(new, transplant_weights(lineage, old), like=model)
    hand_on_marks(lineage, old, adapted)
    return adapted


def load_adapters(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with the adapters that are saved in `folder`, same weights otherwise. All base weights are trained on,
    but those under an adapter.

    Raises:
        CheckpointError, ModelError: if they cannot be read, are not plain LoRA, or do not fit the model.
    """
    spec = ModelSpec.of(model)
    new = ModelSpec(spec.config, adapter=saved_adapters(spec, folder))
    old = dict(model.named_parameters())
    saved = adapters.read_adapters(folder, new)
    weights: dict[str, Tensor] = {}
    for name in new.shapes:
        adapter = new.adapter_at(name)
        host = old[new.name_before(adapter.host if adapter else name)].detach()
        # Adapters have the type of new ones, whatever they were saved in.
        dtype = torch.promote_types(host.dtype, torch.float32)
        weights[name] = saved[name].to(device=host.device, dtype=dtype) if adapter else host
    return dressed(new, weights, like=model)


def saved_adapters(spec: ModelSpec, folder: Path) -> LoraConfig:
    """The description of the adapters that are saved in `folder`, for a model of description `spec`.

    Raises:
        CheckpointError, ModelError: as `load_adapters`.
    """
    heads = {head: embedding for embedding, head in spec.tied_modules}
    config = adapters.read_config(folder)
    try:
        return resolved(config, ModelSpec(spec.config).build(), heads)
    except MorphError:
        raise
    except Exception as error:  # PEFT's own, of any kind: no such module, one that it cannot adapt, no such rank
        raise CheckpointError(f"{folder / adapters.CONFIG}: does not fit the model: {error}") from error


def save_model(model: nn.Module, folder: str | os.PathLike[str], *, merge: bool = True) -> None:
    """Save a model, which may have adapters, in `folder`.

    Args:
        merge: save a plain model, adapters merged. Otherwise the base model, as merges have changed it, and the
            adapters beside it in PEFT's format.

    Raises:
        ModelError: if the model is not supported.
    """
    path = Path(folder)
    spec = ModelSpec.of(model)
    adapters.remove_adapters(path)
    without_adapters(model, merge=merge).save_pretrained(path)
    if spec.sites and not merge:
        adapters.write_adapters(path, spec, dict(bare(model).named_parameters()), path)


def without_adapters(model: nn.Module, *, merge: bool = True) -> PreTrainedModel:
    """A plain model, of transformers alone: adapters merged, or the base by itself. Unchanged weights are shared.

    Raises:
        ModelError: if the model is not supported.
    """
    inner = bare(model)
    assert isinstance(inner, PreTrainedModel)
    spec = ModelSpec.of(inner)
    if spec.adapter is None:
        return inner
    old = dict(inner.named_parameters())
    plain = ModelSpec(spec.config)
    if merge:
        weights = transplant_weights(readapt(spec, plain, AdapterChange(seed=0)), old)
    else:
        weights = {name: old[spec.name_now(name)].detach() for name in plain.shapes}
    return dressed(plain, weights, like=inner)
