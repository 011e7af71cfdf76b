"""How an architecture describes itself: for each parameter, the named axes that it reads and writes.

A parameter *writes* the units of an axis that it produces and *reads* those that it consumes. Whatever
changes an axis follows from that alone: writers gather the new units, readers gather them and are scaled
by the split factors. `{layer}` in a parameter's name stands for the layer axis.

A LoRA adapter adds two matrices to a weight: A writes the axis "rank" and reads what the weight reads, B reads "rank"
and writes what the weight writes. So they follow whatever happens to their weight, with no rule of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Axis:
    """One dimension of a parameter: the axis it runs along and whether it `reads` or `writes` the units.

    `parts` > 1 marks a fused dimension: that many equal blocks, each running along the axis (q|k|v).
    """

    name: str
    role: Literal["reads", "writes"]
    parts: int = 1


def reads(name: str, parts: int = 1) -> Axis:
    return Axis(name, "reads", parts)


def writes(name: str, parts: int = 1) -> Axis:
    return Axis(name, "writes", parts)


ADAPTER = "default"
"""PEFT's name of an adapter where there is one only."""

BASE = ".base_layer"
"""What PEFT puts into the names of a module's own parameters when the module gets an adapter."""


class Adapter(NamedTuple):
    """Parameters of a module's LoRA adapter; its product B A is added to the module's weight.

    Attributes:
        a: name of A, (rank, in).
        b: name of B, (out, rank).
        host: name of the weight that it adapts.
        drawn, zeroed: which of the two is drawn at random and which starts at zero. PEFT zeroes B of a matrix, and A of
            an embedding.
    """

    a: str
    b: str
    host: str
    drawn: str
    zeroed: str


def adapter_of(module: str, is_embedding: bool) -> Adapter:
    """Names as PEFT gives them."""
    host = f"{module}{BASE}.weight"
    if is_embedding:
        a, b = f"{module}.lora_embedding_A.{ADAPTER}", f"{module}.lora_embedding_B.{ADAPTER}"
        return Adapter(a, b, host, drawn=b, zeroed=a)
    a, b = f"{module}.lora_A.{ADAPTER}.weight", f"{module}.lora_B.{ADAPTER}.weight"
    return Adapter(a, b, host, drawn=a, zeroed=b)


@dataclass(frozen=True)
class Architecture:
    """A model family as a table of named axes.

    Attributes:
        model_type: `config.model_type` of the family.
        model_class: name of the transformers class that is morphed.
        parameters: parameter name, with `{layer}` where it is repeated -> its axes, one per dimension.
        components: component kind -> prefixes of its parameters; kinds with `{layer}` exist once per layer.
        adaptable: component kind -> its modules that can carry a LoRA adapter.
        embeddings: which of these are embeddings.
        tied: parameter -> the parameter that it shares storage with when `config.tie_word_embeddings` is set.
        residual_writers: what a block adds to the residual stream; zeros there make the block an identity.
        depth: config field that holds the number of layers.
        width: config -> number of units of the MLP.
        with_width: (config, units) -> None, sets the width of the MLP on a config.
        depends_on_depth: config -> why depth cannot change without changing the function of the old blocks, or None.
    """

    model_type: str
    model_class: str
    parameters: Mapping[str, tuple[Axis, ...]]
    components: Mapping[str, tuple[str, ...]]
    adaptable: Mapping[str, tuple[str, ...]]
    embeddings: frozenset[str]
    tied: Mapping[str, str]
    residual_writers: tuple[str, ...]
    depth: str
    width: Callable[[PretrainedConfig], int]
    with_width: Callable[[PretrainedConfig, int], None]
    depends_on_depth: Callable[[PretrainedConfig], str | None]

    @cached_property
    def tensors(self) -> Mapping[str, tuple[Axis, ...]]:
        """`parameters`, and what they become and what joins them when modules carry adapters."""
        found = dict(self.parameters)
        for module in (module for modules in self.adaptable.values() for module in modules):
            weight = self.parameters[f"{module}.weight"]
            (incoming,) = (axis for axis in weight if axis.role == "reads")
            (outgoing,) = (axis for axis in weight if axis.role == "writes")
            adapter = adapter_of(module, module in self.embeddings)
            found[adapter.host] = weight
            if f"{module}.bias" in self.parameters:
                found[f"{module}{BASE}.bias"] = self.parameters[f"{module}.bias"]
            found[adapter.a] = (writes("rank"), incoming)
            found[adapter.b] = (outgoing, reads("rank"))
        return MappingProxyType(found)

    @cached_property
    def adapters(self) -> Mapping[str, Adapter]:
        """Key in `tensors` of either matrix of an adapter -> the adapter."""
        modules = (module for modules in self.adaptable.values() for module in modules)
        found = (adapter_of(module, module in self.embeddings) for module in modules)
        return MappingProxyType({name: adapter for adapter in found for name in (adapter.a, adapter.b)})

    def modules(self, component: str) -> tuple[str, ...]:
        """Modules of one component, such as `attn.3` or `wte`, that can carry an adapter."""
        kind, _, layer = component.partition(".")
        return tuple(module.replace("{layer}", layer) for module in self.adaptable.get(kind, ()))

    @cached_property
    def _patterns(self) -> tuple[tuple[re.Pattern[str], str], ...]:
        return tuple(
            (re.compile(re.escape(key).replace(r"\{layer\}", r"(?P<layer>\d+)") + r"\Z"), key) for key in self.tensors
        )

    def locate(self, name: str) -> tuple[str, int | None]:
        """Split a parameter's name into its key in `tensors` and its layer (None outside the layers).

        Raises:
            KeyError: if the table has no such parameter.
        """
        for pattern, key in self._patterns:
            if match := pattern.match(name):
                layer = match.groupdict().get("layer")
                return key, None if layer is None else int(layer)
        raise KeyError(name)

    def layers(self, config: PretrainedConfig) -> int:
        return int(getattr(config, self.depth))

    def component_names(self, config: PretrainedConfig) -> list[str]:
        """All components of a model, e.g. `wte`, `attn.0`, `h.3`."""
        names: list[str] = []
        for kind, prefixes in self.components.items():
            if any("{layer}" in prefix for prefix in prefixes):
                names += [f"{kind}.{layer}" for layer in range(self.layers(config))]
            else:
                names.append(kind)
        return names

    def component_prefixes(self, component: str) -> tuple[str, ...]:
        """Prefixes of the parameters of one component such as `attn.3` or `wte`."""
        kind, _, layer = component.partition(".")
        return tuple(prefix.replace("{layer}", layer) for prefix in self.components[kind])
