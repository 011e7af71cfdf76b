"""`ModelSpec`: everything that is needed to build a model's modules, and nothing of its weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from morphing_trainer.architectures import ARCHITECTURES, Architecture
from morphing_trainer.errors import ModelError


@lru_cache(maxsize=256)
def _shapes(description: str) -> Mapping[str, torch.Size]:
    """Shapes of the parameters of a config, given as JSON; building modules takes tens of milliseconds."""
    model = ModelSpec(AutoConfig.for_model(**json.loads(description))).build("meta")
    return MappingProxyType({name: parameter.shape for name, parameter in model.named_parameters()})


def architecture_of(model: nn.Module) -> Architecture:
    """The table that describes `model`.

    Raises:
        ModelError: if the model's class has none.
    """
    config = getattr(model, "config", None)
    architecture = ARCHITECTURES.get(getattr(config, "model_type", ""))
    if architecture is None or type(model).__name__ != architecture.model_class:
        supported = ", ".join(sorted(entry.model_class for entry in ARCHITECTURES.values()))
        raise ModelError(
            f"model: {type(model).__name__} cannot be morphed; supported is {supported}. "
            "A new family is a table of named axes in morphing_trainer/architectures."
        )
    if getattr(config, "add_cross_attention", False):
        raise ModelError("model: has cross-attention, which cannot be morphed; use a decoder-only model.")
    return architecture


@dataclass(frozen=True)
class ModelSpec:
    """A model's description. Immutable: `evolve` returns a changed copy.

    Attributes:
        config: the transformers config. Never mutate it.
        frozen: names of the parameters that take no gradient.
    """

    config: PretrainedConfig
    frozen: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def of(cls, model: nn.Module) -> ModelSpec:
        """Describe a live (unwrapped) model.

        Raises:
            ModelError: if the model's family is not supported.
        """
        architecture_of(model)
        assert isinstance(model, PreTrainedModel)
        frozen = frozenset(name for name, parameter in model.named_parameters() if not parameter.requires_grad)
        return cls(copy.deepcopy(model.config), frozen)

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
        return _shapes(self.config.to_json_string(use_diff=False))

    @property
    def parameters(self) -> int:
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def trainable(self) -> int:
        return sum(shape.numel() for name, shape in self.shapes.items() if name not in self.frozen)

    def evolve(
        self, frozen: Iterable[str] | None = None, *, layers: int | None = None, mlp: int | None = None
    ) -> ModelSpec:
        """A copy with other frozen parameters, depth or MLP width."""
        config = copy.deepcopy(self.config)
        if layers is not None:
            setattr(config, self.architecture.depth, layers)
        if mlp is not None:
            self.architecture.with_width(config, mlp)
        return replace(self, config=config, frozen=self.frozen if frozen is None else frozenset(frozen))

    def build(self, device: str | torch.device = "meta") -> PreTrainedModel:
        """A model of this description with uninitialised or freshly initialised weights, `frozen` applied."""
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(copy.deepcopy(self.config))
        assert isinstance(model, PreTrainedModel)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in self.frozen)
        return model

    def expand(self, component: str) -> frozenset[str]:
        """Names of the parameters of one component (`attn.3`, `wte`); a tied parameter under its owner's name."""
        prefixes = self.architecture.component_prefixes(component)
        tied = self.architecture.tied if self.config.tie_word_embeddings else {}
        names = [*self.shapes, *tied]
        return frozenset(tied.get(name, name) for name in names if name.startswith(prefixes))

    def to_dict(self) -> dict[str, Any]:
        return {"config": self.config.to_dict(), "frozen": sorted(self.frozen)}

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
            return cls(AutoConfig.for_model(model_type, **values), frozen)
        except (KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"model description: is not one that this library wrote ({error!r})") from error

    def facts(self) -> dict[str, int]:
        """Shape and size for tables and records."""
        return {
            "layers": self.layers,
            "hidden": self.hidden,
            "mlp": self.mlp,
            "parameters": self.parameters,
            "trainable": self.trainable,
        }
