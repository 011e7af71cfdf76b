"""LoRA adapters: rank, alpha, merges. Sources: LoRA (Hu et al. 2022), ReLoRA (Lialin et al. 2023), rsLoRA.

An adapter adds s * B A to a weight, with A of (rank, in), B of (out, rank) and s = alpha / rank (rsLoRA: alpha over the
root of the rank). Weights under an adapter are not trained. PEFT builds the modules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from morphing_trainer.errors import OperationError
from morphing_trainer.lineage.sites import AdapterChange, Site
from morphing_trainer.operations.base import ArchitectureOperation, Factor, Morph, Nothing, draw_seed, whole
from morphing_trainer.operations.components import ADAPTABLE, check_adaptable, resolve

if TYPE_CHECKING:
    import torch

    from morphing_trainer.lineage import ModelSpec

Rank = Annotated[int, BeforeValidator(whole), Field(ge=0)]
"""A rank; 0 is no adapter."""

Residual = Literal["merge", "drop"]


def _component_and_rank(value: object) -> list[Any]:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
        raise ValueError(f"must be a component and a rank, such as [attn.2, 16], is {value!r}")
    component, rank = value[0], whole(value[1])
    check_adaptable(component)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0:
        raise ValueError(f"the rank must be a whole number from 0, is {value[1]!r}")
    return [component, rank]


ComponentRank = Annotated[
    list[Any],
    BeforeValidator(_component_and_rank),
    WithJsonSchema(
        {
            "type": "array",
            "prefixItems": [ADAPTABLE, {"type": "integer", "minimum": 0}],
            "minItems": 2,
            "maxItems": 2,
        }
    ),
]
"""A component and the rank of its adapters."""


class _Adapting(ArchitectureOperation):
    """What the operations on adapters share."""

    family: ClassVar[str] = "LoRA"


class _Ranking(_Adapting):
    """What the operations on ranks share."""

    residual: Residual = "merge"

    def _ranked(
        self,
        spec: ModelSpec,
        ranks: Mapping[str, int],
        rng: torch.Generator,
        alpha: float | None,
        divisors: Mapping[str, float],
    ) -> Morph:
        """The model with other ranks in some modules.

        Args:
            ranks: module -> rank.
            alpha: of these adapters. Default: as they have, or the run's.
            divisors: component kind -> divisor that the ranks follow from, 0 if they do not. One that no rank follows
                from any more is forgotten.
        """
        sites = dict(spec.sites)
        for module, rank in ranks.items():
            if rank == 0:
                sites.pop(module, None)
                continue
            check_rank(spec, module, rank)
            old = sites.get(module)
            value = alpha or (old.alpha if old else spec.alpha)
            sites[module] = Site(rank, value)
        obsolete = {
            kind: 0.0
            for kind, divisor in spec.divisors.items()
            if _divided(spec.hidden, divisor) not in {sites[m].rank for m in spec.modules(kind) if m in sites}
        }
        shrinks = any(module in sites and sites[module].rank < site.rank for module, site in spec.sites.items())
        new = spec.readapted(sites, **{**obsolete, **divisors})
        note = _changes(spec, new)
        warning = "" if note else "nothing changes, the adapters are so already"
        how = AdapterChange(draw_seed(rng), residual=self.residual)
        return _morph(spec, new, how, preserving=not (shrinks and self.residual == "drop"), note=note, warning=warning)


class _Decreasing(_Ranking):
    """Another divisor of the hidden size."""

    value: Factor
    kind: ClassVar[str]
    what: ClassVar[str]
    instead: ClassVar[str]

    def morph(self, spec: ModelSpec, rng: torch.Generator) -> Morph:
        able = frozenset(spec.modules(self.kind))
        modules = [module for module in spec.sites if module in able]
        if not modules:
            raise OperationError(
                f"the model has no adapter on its {self.what}, whose rank could change; {self.instead} makes one"
            )
        divisor = spec.divisor(self.kind) / self.value
        rank = _divided(spec.hidden, divisor)
        if rank < 1:
            raise OperationError(
                f"the divisor becomes {divisor:g}, and {spec.hidden} // {divisor:g} leaves no rank; use a larger "
                f"value, or {self.instead} with 0 to remove the adapters"
            )
        for module in modules:
            check_rank(spec, module, rank, f"the divisor becomes {divisor:g}: ")
        return self._ranked(spec, dict.fromkeys(modules, rank), rng, None, {self.kind: divisor})


class DecreaseAttnLoraScaling(_Decreasing):
    """Divide the rank divisor of the attention by `value`: rank = hidden size // divisor, for all its adapters.

    A value above 1 raises the rank, which keeps the function. One below 1 lowers it: the best approximation of
    that rank stays in the adapter, and what is cut off goes into the weight (`residual: merge`, exact) or is lost
    (`residual: drop`). Alpha stays, so that the scaling changes with the rank, which the matrices make up for.
    """

    name: Literal["decrease_attn_lora_scaling"] = "decrease_attn_lora_scaling"
    kind: ClassVar[str] = "attn"
    what: ClassVar[str] = "attention"
    instead: ClassVar[str] = "set_attn_lora_rank"


class DecreaseVocabLoraScaling(_Decreasing):
    """Divide the rank divisor of the embedding by `value`, as `decrease_attn_lora_scaling` does for the attention."""

    name: Literal["decrease_vocab_lora_scaling"] = "decrease_vocab_lora_scaling"
    kind: ClassVar[str] = "wte"
    what: ClassVar[str] = "embedding"
    instead: ClassVar[str] = "set_embedding_lora_rank"


class SetAttnLoraRank(_Ranking):
    """Give the attention of every layer adapters of this rank; 0 merges and removes them.

    Changes the adapters on those matrices that have some in any layer, and makes them on `c_attn` and `c_proj` if there
    are none. `alpha` is theirs from then on (default: what they have, or the run's `lora_alpha`). What a smaller rank
    cannot hold goes into the weight (`residual: merge`, exact) or is lost (`drop`).
    """

    name: Literal["set_attn_lora_rank"] = "set_attn_lora_rank"
    value: Rank
    alpha: Factor | None = None

    def morph(self, spec: ModelSpec, rng: torch.Generator) -> Morph:
        modules = _usual(spec, spec.modules("attn"))
        return self._ranked(spec, dict.fromkeys(modules, self.value), rng, self.alpha, {"attn": 0.0})


class SetEmbeddingLoraRank(_Ranking):
    """Give the token embedding an adapter of this rank; 0 merges and removes it. Options as in `set_attn_lora_rank`.

    Where the head is tied to the embedding, the adapter is on the matrix that they share: both see the same change.
    """

    name: Literal["set_embedding_lora_rank"] = "set_embedding_lora_rank"
    value: Rank
    alpha: Factor | None = None

    def morph(self, spec: ModelSpec, rng: torch.Generator) -> Morph:
        modules = spec.modules("wte")
        return self._ranked(spec, dict.fromkeys(modules, self.value), rng, self.alpha, {"wte": 0.0})


class SetLayerLoraRank(_Ranking):
    """Give one component adapters of this rank, such as [attn.2, 16]; 0 merges and removes them.

    Components are `attn.N`, `mlp.N`, `wte`, and globs and ranges of them. Makes the adapters if there are none: on the
    matrices that have some in other layers, or else on all of the component. Options as in `set_attn_lora_rank`.
    """

    name: Literal["set_layer_lora_rank"] = "set_layer_lora_rank"
    value: ComponentRank
    alpha: Factor | None = None

    def morph(self, spec: ModelSpec, rng: torch.Generator) -> Morph:
        component, rank = self.value
        if spec.config.tie_word_embeddings and component == "lm_head":
            raise OperationError("'lm_head' shares its weights with 'wte': an adapter on 'wte' is on both; name that")
        names = resolve(spec, component)
        chosen = [module for name in names for module in spec.architecture.modules(name)]
        kinds = {name.partition(".")[0] for name in names}
        usual = [module for kind in kinds for module in _usual(spec, spec.modules(kind))]
        ranks = {module: rank for module in chosen if module in usual or module in spec.sites}
        return self._ranked(spec, ranks, rng, self.alpha, {})


class MergeLoraWeights(_Adapting):
    """Merge all adapters into their weights, in float32 at least; start them anew, or remove them (`restart: false`).

    The function stays. Adapters that start anew have one matrix drawn and the other zero, and newborn moments with a
    step count of their own, so that over time the weights change by more than one adapter's rank (ReLoRA). Let the
    learning rate warm up again after it: `reset_lr_schedule`.

    Limits: ReLoRA loses to full-rank training in models below about 66M parameters. Weights that are kept in half
    precision are rounded once by a merge; keep them in float32 and train with `--bf16` instead.
    """

    name: Literal["merge_lora_weights"] = "merge_lora_weights"
    value: Nothing = None
    restart: bool = True

    def morph(self, spec: ModelSpec, rng: torch.Generator) -> Morph:
        note = f"{len(spec.sites)} merged{' and started anew' if self.restart else ''}" if spec.sites else ""
        warning = "" if spec.sites else "there is nothing to merge, the model has no adapters"
        new = spec if self.restart else spec.readapted({}, **dict.fromkeys(spec.divisors, 0.0))
        return _morph(
            spec, new, AdapterChange(draw_seed(rng), restart=self.restart), preserving=True, note=note, warning=warning
        )


LEAST_ALPHA, MOST_ALPHA = 1e-12, 1e12
"""Beyond these an adapter counts for nothing, or for more than numbers can hold when its gradients are squared."""


class ChangeLoraAlpha(_Adapting):
    """Multiply the alpha of every adapter, and of those to come: they count for more, or for less.

    The function changes, unless `compensate: true` divides the matrices by as much: then only the learning goes at
    another pace. Moments are scaled as the gradients are.
    """

    name: Literal["change_lora_alpha"] = "change_lora_alpha"
    value: Factor
    compensate: bool = False

    def morph(self, spec: ModelSpec, rng: torch.Generator) -> Morph:
        for alpha in (spec.alpha * self.value, *(site.alpha * self.value for site in spec.sites.values())):
            if not LEAST_ALPHA <= alpha <= MOST_ALPHA:
                raise OperationError(f"alpha would become {alpha:g}; use a factor nearer to 1")
        sites = {module: Site(site.rank, site.alpha * self.value) for module, site in spec.sites.items()}
        new = spec.readapted(sites, alpha=spec.alpha * self.value)
        note = _changes(spec, new)
        warning = "" if note else "the model has no adapters now; adapters to come get the new alpha"
        how = AdapterChange(draw_seed(rng), compensate=self.compensate)
        return _morph(spec, new, how, preserving=self.compensate or not sites, note=note, warning=warning)


def _divided(hidden: int, divisor: float) -> int:
    """The rank that a divisor stands for. 768 / 15 is not a float, so 768 // (768 / 15) is 14."""
    return int(hidden / divisor * (1 + 1e-9))


def check_rank(spec: ModelSpec, module: str, rank: int, where: str = "") -> None:
    """Refuse a rank that the module's weight cannot use. `where` it comes from stands before the message.

    Raises:
        OperationError: naming the largest one.
    """
    shape = spec.shapes[spec.name_now(f"{module}.weight")]
    if rank > min(shape):
        raise OperationError(
            f"{where}rank {rank} is above {min(shape)}, the smaller side of {module} ({shape[0]} x {shape[1]}): a "
            f"larger one adds nothing; use at most {min(shape)}, or train the weight itself"
        )


def _usual(spec: ModelSpec, modules: list[str]) -> list[str]:
    """Of these modules those whose matrix (c_attn, c_proj) has an adapter in some layer; all if none has."""
    used = {module.rpartition(".")[2] for module in modules if module in spec.sites}
    return [module for module in modules if not used or module.rpartition(".")[2] in used]


def _changes(spec: ModelSpec, new: ModelSpec) -> str:
    """What becomes of ranks and alphas, in words."""
    kinds = {module: kind for kind in spec.architecture.adaptable for module in spec.modules(kind)}
    count: Counter[str] = Counter()
    for module, kind in kinds.items():
        old, now = spec.sites.get(module, Site(0, 0)), new.sites.get(module, Site(0, 0))
        if old.rank != now.rank:
            count[f"{kind} rank {old.rank} -> {now.rank}"] += 1
        elif old.alpha != now.alpha:
            count[f"{kind} alpha {old.alpha:g} -> {now.alpha:g}"] += 1
    return ", ".join(f"{what} on {number}" for what, number in count.items())


def _morph(spec: ModelSpec, new: ModelSpec, how: AdapterChange, *, preserving: bool, note: str, warning: str) -> Morph:
    from morphing_trainer.lineage import readapt

    lineage = readapt(spec, new, how)
    # An adapter that starts anew stays frozen if it was.
    frozen = lineage.inherit(spec.frozen) | (spec.frozen & frozenset(new.shapes))
    new = new.evolve(frozen)
    if new.trainable == 0:
        raise OperationError("nothing would be left to train; unfreeze_layer something first")
    return Morph(new, lineage, preserving, note, warning)
