"""`ModelSpec`: everything that is needed to build a model's modules, and nothing of its weights."""

from __future__ import annotations

import copy
import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from types import MappingProxyType, NoneType
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from morphing_trainer.architectures import ARCHITECTURES, BASE, Adapter, Architecture, adapter_of
from morphing_trainer.errors import ModelError
from morphing_trainer.lineage import adapters
from morphing_trainer.lineage.sites import Site

_MOST = {
    "n_layer": 1_000,
    "n_embd": 2**20,
    "n_head": 2**16,
    "n_inner": 2**23,
    "n_positions": 2**27,
    "vocab_size": 2**27,
}
"""More than any model has; a file that asks for more is not what it claims to be."""
_SWITCHES = ("output_hidden_states", "output_attentions", "use_cache", "return_dict")
"""Fields of a config that modules take for a yes or no, whatever is in them."""


@lru_cache(maxsize=256)
def _shapes(description: str) -> Mapping[str, torch.Size]:
    """Shapes of the parameters of a description, given as JSON; building modules takes tens of milliseconds."""
    config, adapter = json.loads(description)
    model = ModelSpec(
        AutoConfig.for_model(**config), adapter=None if adapter is None else adapters.read(adapter)
    ).build("meta")
    return MappingProxyType({name: parameter.shape for name, parameter in model.named_parameters()})


def architecture_of(model: nn.Module) -> Architecture:
    """The table that describes `model`.

    Raises:
        ModelError: if the model's class has none, or its weights are quantised.
    """
    model = adapters.bare(model)
    config = getattr(model, "config", None)
    architecture = ARCHITECTURES.get(getattr(config, "model_type", ""))
    # FSDP2 gives modules that it divides a class of its own, made from theirs.
    kind = type(model).__name__.removeprefix("FSDP")
    if architecture is None or kind != architecture.model_class:
        supported = ", ".join(sorted(entry.model_class for entry in ARCHITECTURES.values()))
        raise ModelError(
            f"model: {kind} cannot be morphed; supported is {supported}. "
            "A family of your own is a table of named axes, given to morphing_trainer.register."
        )
    if getattr(config, "add_cross_attention", False):
        raise ModelError("model: has cross-attention, which cannot be morphed; use a decoder-only model.")
    if adapters.is_quantised(model):
        raise ModelError(
            "model: its weights are quantised. Growing, merging and rank changes compute with the weights themselves, "
            "and quantising the result again would change the function; load it in float32 or bfloat16."
        )
    return architecture


@dataclass(frozen=True)
class ModelSpec:
    """A model's description. Immutable: `evolve` returns a changed copy.

    Parameters have the names that PEFT gives them: where a module carries an adapter, its own weight is `base_layer`.

    Attributes:
        config: the transformers config. Never mutate it.
        frozen: names of the parameters that were frozen. What is under an adapter takes no gradient either way.
        adapter: the LoRA adapters, in the canonical form of `lineage.adapters`. Never mutate it.
        divisors: component kind (attn, wte) -> the divisor of the hidden size that its adapters' rank is set by, where
            it is; an integer division cannot be undone.
    """

    config: PretrainedConfig
    frozen: frozenset[str] = field(default_factory=frozenset)
    adapter: LoraConfig | None = None
    divisors: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> ModelSpec:
        """Describe a live (unwrapped) model.

        A weight under an adapter takes no gradient. Whether it is frozen besides is known of models that were built
        from a description; in others, such as a `PeftModel`, it is if all of the base model is. The weight of a frozen
        adapter always is.

        Raises:
            ModelError: if the model's family or its adapters are not supported.
        """
        architecture = architecture_of(model)
        model = adapters.bare(model)
        assert isinstance(model, PreTrainedModel)
        tied = _tied_modules(architecture, model.config)
        adapter = adapters.describe(model, {head: embedding for embedding, head in tied})
        spec = cls(copy.deepcopy(model.config), adapter=adapter, divisors=dict(getattr(model, "lora_divisors", {})))
        still = frozenset(name for name, parameter in model.named_parameters() if not parameter.requires_grad)
        base = {name for name in spec.shapes if spec.adapter_at(name) is None}
        guess = spec.hosts if base <= still else frozenset()
        known = frozenset(getattr(model, "frozen_hosts", guess))
        found = [spec.adapter_names(module) for module in spec.sites]
        known |= {adapter.host for adapter in found if {adapter.a, adapter.b} <= still}
        return replace(spec, frozen=(still - spec.hosts) | (known & spec.hosts))

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.config.model_type]

    @property
    def layers(self) -> int:
        return self.architecture.layers(self.config)

    @property
    def hidden(self) -> int:
        return int(self.config.hidden_size)

    @property
    def mlp(self) -> int:
        return self.architecture.width(self.config)

    @cached_property
    def shapes(self) -> Mapping[str, torch.Size]:
        """Parameter name -> shape, in the model's order, tied parameters once."""
        adapter = None if self.adapter is None else adapters.written(self.adapter)
        return _shapes(json.dumps([json.loads(self.config.to_json_string(use_diff=False)), adapter], sort_keys=True))

    @property
    def parameters(self) -> int:
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def trainable(self) -> int:
        return sum(shape.numel() for name, shape in self.shapes.items() if name not in self.untrained)

    @cached_property
    def sites(self) -> Mapping[str, Site]:
        """Adapted module -> rank and alpha of its adapter. A tied head shares the embedding's and is not named."""
        return MappingProxyType(adapters.sites_of(self.adapter))

    @cached_property
    def hosts(self) -> frozenset[str]:
        """Names of the weights under an adapter, which are not trained."""
        return frozenset(self.adapter_names(module).host for module in self.sites)

    @cached_property
    def untrained(self) -> frozenset[str]:
        """Names of all parameters that take no gradient."""
        return self.frozen | self.hosts

    @property
    def tied_modules(self) -> list[tuple[str, str]]:
        """(embedding, head) pairs of modules that share their weight."""
        return _tied_modules(self.architecture, self.config)

    @cached_property
    def tied(self) -> Mapping[str, str]:
        """Names of parameters -> the parameter that they are, under its own name."""
        found: dict[str, str] = {}
        for embedding, head in self.tied_modules:
            found[self.name_now(f"{head}.weight")] = self.name_now(f"{embedding}.weight")
            if embedding in self.sites:
                found |= adapters.tied_names(embedding, head)
        return MappingProxyType(found)

    def adapter_names(self, module: str) -> Adapter:
        """Names of the matrices of a module's adapter, whether it has one or not."""
        return adapter_of(module, module in self.architecture.embeddings)

    def adapter_at(self, name: str) -> Adapter | None:
        """The adapter that the parameter `name` is a matrix of."""
        module = name.partition(".lora_")[0]
        return self.adapter_names(module) if module != name else None

    @property
    def alpha(self) -> float:
        """Alpha of adapters to come."""
        return (self.adapter or LoraConfig()).lora_alpha

    @property
    def peft_config(self) -> LoraConfig:
        """The config that gives PEFT the same function; canonical otherwise."""
        return adapters.with_heads(self.adapter or LoraConfig(), self.tied_modules)

    def scaling(self, module: str) -> float:
        """The factor s of W + s * B A in an adapted module."""
        assert self.adapter is not None
        return self.sites[module].scaling(self.adapter.use_rslora)

    def modules(self, kind: str) -> list[str]:
        """All modules of a component kind (attn, mlp, wte) that can carry an adapter."""
        components = self.architecture.component_names(self.config)
        chosen = [name for name in components if name.partition(".")[0] == kind]
        return [module for name in chosen for module in self.architecture.modules(name)]

    def divisor(self, kind: str) -> float:
        """Hidden size over the rank of the adapters on components of this kind (attn, wte), 0 if there are none.

        As it was set, if it was; else from the largest rank.
        """
        rank = max((self.sites[module].rank for module in self.modules(kind) if module in self.sites), default=0)
        return self.divisors.get(kind, self.hidden / rank) if rank else 0.0

    def name_now(self, name: str) -> str:
        """What the parameter `name` of the model without adapters is called in this one."""
        module, _, last = name.rpartition(".")
        embeddings = {head: embedding for embedding, head in self.tied_modules}
        return f"{module}{BASE}.{last}" if embeddings.get(module, module) in self.sites else name

    def name_before(self, name: str) -> str:
        """What the base parameter `name` of this model is called in one without adapters."""
        return name.replace(BASE, "")

    def evolve(self, frozen: Iterable[str] | None = None, *, mlp: int | None = None) -> ModelSpec:
        """A copy with other frozen parameters or MLP width."""
        config = copy.deepcopy(self.config)
        if mlp is not None:
            self.architecture.with_width(config, mlp)
        return replace(self, config=config, frozen=self.frozen if frozen is None else frozenset(frozen))

    def restacked(self, sources: Sequence[int]) -> ModelSpec:
        """A copy whose layer i is built like layer `sources[i]` of this one."""
        config = copy.deepcopy(self.config)
        setattr(config, self.architecture.depth, len(sources))
        if self.adapter is None:
            return replace(self, config=config)
        located = {module: self.architecture.locate(self.adapter_names(module).host) for module in self.sites}
        sites = {module: self.sites[module] for module, (_, layer) in located.items() if layer is None}
        for module, (key, layer) in located.items():
            pattern = key.removesuffix(f"{BASE}.weight")
            copies = [new for new, source in enumerate(sources) if source == layer]
            sites |= {pattern.replace("{layer}", str(new)): self.sites[module] for new in copies}
        return replace(self, config=config, adapter=adapters.canonical(sites, self.adapter))

    def readapted(self, sites: Mapping[str, Site], *, alpha: float | None = None, **divisors: float) -> ModelSpec:
        """A copy with other adapters, and other divisors (0 forgets one); `alpha` is that of adapters to come."""
        kept = {kind: divisor for kind, divisor in {**self.divisors, **divisors}.items() if divisor}
        return replace(self, adapter=adapters.canonical(sites, self.adapter, alpha), divisors=kept)

    def build(self, device: str | torch.device = "meta") -> PreTrainedModel:
        """A model of this description with uninitialised (meta) or freshly initialised weights, `frozen` applied."""
        blank = torch.device(device).type == "meta"
        # To draw random numbers for weights that are nowhere takes most of the time.
        with torch.device(device), no_init_weights() if blank else nullcontext():
            model = AutoModelForCausalLM.from_config(copy.deepcopy(self.config))
            assert isinstance(model, PreTrainedModel)
            if blank:
                model.tie_weights()
            if self.adapter is not None:
                adapters.inject(model, self.adapter, self.tied_modules)
        # What no module can tell, for `of`.
        model.lora_divisors = dict(self.divisors)  # type: ignore[assignment]
        model.frozen_hosts = sorted(self.frozen & self.hosts)  # type: ignore[assignment]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in self.untrained)
        return model

    def expand(self, component: str) -> frozenset[str]:
        """Names of the parameters of one component (`attn.3`, `wte`); a tied parameter under its owner's name."""
        found: list[str] = []
        for prefix in self.architecture.component_prefixes(component):
            first = at = bisect_left(self._sorted_names, prefix)
            while at < len(self._sorted_names) and self._sorted_names[at].startswith(prefix):
                at += 1
            found += self._sorted_names[first:at]
        return frozenset(self.tied.get(name, name) for name in found)

    @cached_property
    def _sorted_names(self) -> list[str]:
        """Of all parameters, tied ones too: a deep model has many, and is asked for each of its parts."""
        return sorted([*self.shapes, *self.tied])

    def to_dict(self) -> dict[str, Any]:
        return {
            "config": self.config.to_dict(),
            "frozen": sorted(self.frozen),
            "adapter": None if self.adapter is None else adapters.written(self.adapter),
            "divisors": dict(self.divisors),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Rebuild what `to_dict` wrote.

        Raises:
            ModelError: if it is not a description of a supported family.
        """
        try:
            values = dict(data["config"])
            model_type = values.pop("model_type")
            if model_type not in ARCHITECTURES:
                raise ModelError(f"model description: {model_type!r} is not a supported family")
            frozen = frozenset(str(name) for name in data["frozen"])
            adapter = None if data["adapter"] is None else adapters.read(data["adapter"])
            divisors = {str(kind): float(divisor) for kind, divisor in data["divisors"].items()}
            return cls(AutoConfig.for_model(model_type, **values), frozen, adapter, divisors).checked()
        except ModelError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, StrictDataclassError) as error:
            raise ModelError(f"model description: is not one that this library wrote ({error!r})") from error

    def checked(self) -> ModelSpec:
        """The same.

        Raises:
            ModelError: if its sizes are beyond those of any model (a file may say so), or nothing can be built of it.
        """
        for name, most in _MOST.items():
            value = getattr(self.config, name, None)
            if value is not None and (type(value) is not int or not 1 <= value <= most):
                raise ModelError(f"model description: {name} must be a whole number from 1 to {most}, is {value!r:.50}")
        for name in _SWITCHES:
            if type(value := getattr(self.config, name, None)) not in (bool, NoneType):
                raise ModelError(f"model description: {name} must be true or false, is {value!r:.50}")
        try:
            known = self.shapes.keys()
        except Exception as error:  # of whatever the modules raise for what their config says
            raise ModelError(f"model description: no model can be built of it ({error})") from error
        if strangers := self.frozen - known:
            raise ModelError(f"model description: {min(strangers)!r:.100} is frozen, but is no parameter of the model")
        for module in self.sites:
            if self.adapter_names(module).host not in known:
                raise ModelError(f"model description: {module!r:.100} has an adapter, but is no module of the model")
        return self

    def facts(self) -> dict[str, int]:
        """Shape and size for tables and records."""
        return {
            "layers": self.layers,
            "hidden": self.hidden,
            "mlp": self.mlp,
            "parameters": self.parameters,
            "trainable": self.trainable,
            "lora_rank": max((site.rank for site in self.sites.values()), default=0),
            "lora_modules": len(self.sites),
        }


def _tied_modules(architecture: Architecture, config: PretrainedConfig) -> list[tuple[str, str]]:
    """(embedding, head) pairs of modules that share their weight."""
    tied = architecture.tied if config.tie_word_embeddings else {}
    return [(owner.removesuffix(".weight"), name.removesuffix(".weight")) for name, owner in tied.items()]
