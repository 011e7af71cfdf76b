"""Floating-point operations of a training step, counted from a model's description.

Counted as `torch.utils.flop_counter` counts: matrix products only, 2 for each multiplication and addition, whole score
matrices (a causal kernel may leave out half of them), the head included; looking up an embedding is none. What is
frozen takes no gradient, and what lies before the first trained parameter is not gone back through. A kernel that
computes scores again on the way back is not charged for it, as is usual in model FLOPs (Chowdhery et al. 2022, PaLM,
appendix B).
"""

from __future__ import annotations

from dataclasses import dataclass

from morphing_trainer.architectures.axes import Axis
from morphing_trainer.lineage import ModelSpec


@dataclass(frozen=True)
class Flops:
    """Of one forward pass, and of the way back behind it."""

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        return self.forward + self.backward

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)


def step_flops(spec: ModelSpec, length: int, samples: int = 1) -> Flops:
    """Of a forward and backward pass over `samples` samples of `length` tokens each."""
    return _Pass(spec, samples * length, length).count()


def flops_per_token(spec: ModelSpec, length: int) -> float:
    """Of training on one token, in samples of `length` tokens."""
    return step_flops(spec, length).total / length


class _Pass:
    """A forward pass, module by module in the order in which they are used."""

    def __init__(self, spec: ModelSpec, tokens: int, length: int) -> None:
        self.spec, self.tokens, self.length = spec, tokens, length
        self.flows = False
        """Whether a gradient goes back into the activations at this point."""
        self.sum = Flops()

    def count(self) -> Flops:
        for module, names in self._modules().items():
            weight = self.spec.name_now(f"{module}.weight")
            if any(axis.name == "head" and axis.role == "reads" for axis in self._axes(weight)):
                self._attend()  # what this matrix multiplies is what the heads have read
            if module in self.spec.architecture.embeddings:
                self._look_up(module, weight)
            elif len(self.spec.shapes[weight]) == 2:
                self._multiply(module, weight, *self._adapter(module))
            self.flows |= any(map(self._trains, names))
        for embedding, _ in self.spec.tied_modules:  # the same matrices the other way round, at the end
            self._multiply(embedding, self.spec.name_now(f"{embedding}.weight"), *reversed(self._adapter(embedding)))
        return self.sum

    def _modules(self) -> dict[str, list[str]]:
        """Module -> its parameters, those of its adapter included; in the order of computing, as they are built."""
        found: dict[str, list[str]] = {}
        for name in self.spec.shapes:
            plain = self.spec.name_before(name).partition(".lora_")[0]
            module = plain if plain != self.spec.name_before(name) else plain.rpartition(".")[0]
            found.setdefault(module, []).append(name)
        return found

    def _look_up(self, module: str, weight: str) -> None:
        """An embedding; its adapter looks up one matrix and multiplies by the other."""
        if names := self._adapter(module):
            first, second = names
            # Positions are the same for all samples, and are looked up once.
            once = any(axis.name == "position" for axis in self._axes(weight))
            rows = self.length if once else self.tokens
            self._product(second, self._trains(first), rows)

    def _multiply(self, module: str, weight: str, *adapter: str) -> None:
        flows = self.flows
        self._product(weight, flows)
        if adapter:
            first, second = adapter
            self._product(first, flows)
            self._product(second, flows or self._trains(first))

    def _attend(self) -> None:
        """Scores, and the values that they weigh: of all heads together as wide as the model."""
        cost = 2 * 2 * self.length * self.tokens * self.spec.hidden
        self.sum += Flops(cost, 2 * cost if self.flows else 0)

    def _product(self, name: str, flows: bool, rows: int | None = None) -> None:
        """By the matrix `name`, of activations that take a gradient or not."""
        cost = 2 * (self.tokens if rows is None else rows) * self.spec.shapes[name].numel()
        self.sum += Flops(cost, cost * (flows + self._trains(name)))

    def _adapter(self, module: str) -> tuple[str, ...]:
        if module not in self.spec.sites:
            return ()
        names = self.spec.adapter_names(module)
        return names.a, names.b

    def _trains(self, name: str) -> bool:
        return name not in self.spec.untrained

    def _axes(self, weight: str) -> tuple[Axis, ...]:
        key, _ = self.spec.architecture.locate(weight)
        return self.spec.architecture.tensors[key]
