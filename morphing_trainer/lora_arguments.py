"""What a run says about LoRA adapters when it starts, and what that means for a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULT_TARGETS

from morphing_trainer.errors import ConfigError, OperationError, suggest
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.operations.lora import check_rank


@dataclass
class LoraArguments:
    """Adapters that a run starts with, and the options of those that operations make. By default there are none.

    Ranks are given by divisors of the hidden size, or by `lora_r` and the matrices that get it.
    """

    attn_lora_rank_divisor: int = field(
        default=0, metadata={"help": "Adapters on every attention, of rank n_embd // divisor. 0 makes none."}
    )
    vocab_lora_rank_divisor: int = field(
        default=0, metadata={"help": "An adapter on the token embedding, of rank n_embd // divisor. 0 makes none."}
    )
    lora_r: int | None = field(default=None, metadata={"help": "Rank of adapters on `lora_target_modules`."})
    lora_target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Modules: ends of their names, such as c_attn, mlp.c_fc, wte, or all-linear. Default: c_attn."
        },
    )
    lora_alpha: float = field(
        default=8, metadata={"help": "Adapters count alpha / rank times (rsLoRA: alpha / root of the rank)."}
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout of what adapters of matrices read."})
    use_rslora: bool = field(default=False, metadata={"help": "Divide alpha by the root of the rank (rsLoRA)."})
    lora_freeze_base: Literal["targets", "all"] = field(
        default="targets",
        metadata={
            "help": "What adapters freeze: the weights under them (targets), or all of the base model (fine-tuning)."
        },
    )


def check_arguments(spec: ModelSpec, a: LoraArguments) -> None:
    """Raise ConfigError for every value that cannot be meant, one line each."""
    whole = {name: getattr(a, name) for name in ("attn_lora_rank_divisor", "vocab_lora_rank_divisor", "lora_r")}
    wrong = [
        f"{name}: must be a whole number, is {value!r}"
        for name, value in whole.items()
        if value is not None and (isinstance(value, bool) or not isinstance(value, int))
    ]
    targets = a.lora_target_modules
    names = targets if isinstance(targets, list | tuple) else [targets]
    if targets is not None and not all(isinstance(name, str) for name in names):
        wrong.append(f"lora_target_modules: must be names of modules, such as ['c_attn', 'mlp.c_fc'], is {targets!r}")
    wrong += [
        f"{name}: must be a number, is {getattr(a, name)!r}"
        for name in ("lora_alpha", "lora_dropout")
        if not isinstance(getattr(a, name), int | float)
    ]
    if wrong:
        raise ConfigError("\n".join(wrong))
    wrong = [
        f"{name}: must be at least 0, is {divisor}"
        if divisor < 0
        else f"{name}: {spec.hidden} // {divisor} leaves no rank; use at most {spec.hidden}, or 0 for no adapter"
        for name, divisor in (
            ("attn_lora_rank_divisor", a.attn_lora_rank_divisor),
            ("vocab_lora_rank_divisor", a.vocab_lora_rank_divisor),
        )
        if not 0 <= divisor <= spec.hidden
    ]
    if not 0 < a.lora_alpha < float("inf"):
        wrong.append(f"lora_alpha: must be a positive number, is {a.lora_alpha}")
    if not 0 <= a.lora_dropout < 1:
        wrong.append(f"lora_dropout: must be at least 0 and below 1, is {a.lora_dropout}")
    if a.lora_freeze_base not in ("targets", "all"):
        hint = suggest(a.lora_freeze_base, ("targets", "all"))
        wrong.append(f"lora_freeze_base: unknown {a.lora_freeze_base!r}{hint}")
    if a.lora_r is not None and a.lora_r < 1:
        wrong.append(f"lora_r: must be at least 1, is {a.lora_r}; leave it out for no adapters")
    if a.lora_r is not None and (a.attn_lora_rank_divisor or a.vocab_lora_rank_divisor):
        wrong.append("lora_r: stands beside a rank divisor; give one or the other")
    if a.lora_target_modules is not None and a.lora_r is None:
        wrong.append("lora_target_modules: have no rank; give lora_r")
    if a.lora_target_modules is not None and not a.lora_target_modules:
        wrong.append("lora_target_modules: names no module; leave it out for c_attn")
    if spec.sites:
        wrong += _redundant(spec, a)
    if wrong:
        raise ConfigError("\n".join(wrong))


def _redundant(spec: ModelSpec, a: LoraArguments) -> list[str]:
    """What cannot be asked of a model that has adapters already, because they have it."""
    assert spec.adapter is not None
    wrong = [
        f"{name}: the model has adapters already; leave it out, or start from a merged model"
        for name in ("attn_lora_rank_divisor", "vocab_lora_rank_divisor", "lora_r")
        if getattr(a, name)
    ]
    has = {"lora_alpha": spec.alpha, "lora_dropout": spec.adapter.lora_dropout, "use_rslora": spec.adapter.use_rslora}
    return wrong + [
        f"{name}: is {getattr(a, name)}, but the model has adapters already, with {value}; leave it out"
        for name, value in has.items()
        if getattr(a, name) not in (value, getattr(LoraArguments(), name))
    ]


def asked_ranks(spec: ModelSpec, a: LoraArguments) -> dict[str, int]:
    """Module -> rank.

    Raises:
        ConfigError: for a module that the model does not have, that no adapter fits, or a rank that it cannot use.
    """
    if a.lora_r is not None:
        asked = {"lora_r": dict.fromkeys(target_modules(spec, a.lora_target_modules), a.lora_r)}
    else:
        asked = {
            name: dict.fromkeys(spec.modules(kind), spec.hidden // divisor)
            for name, kind, divisor in (
                ("attn_lora_rank_divisor", "attn", a.attn_lora_rank_divisor),
                ("vocab_lora_rank_divisor", "wte", a.vocab_lora_rank_divisor),
            )
            if divisor
        }
    for name, ranks in asked.items():
        try:
            for module, rank in ranks.items():
                check_rank(spec, module, rank)
        except OperationError as error:
            raise ConfigError(f"{name}: {error}") from None
    return {module: rank for ranks in asked.values() for module, rank in ranks.items()}


def target_modules(spec: ModelSpec, targets: list[str] | str | None) -> list[str]:
    """Modules whose name is, or ends with, one of `targets`, as PEFT finds them. Default: PEFT's choice for the family.

    "all-linear" stands for every matrix that is no embedding and not the head.

    Raises:
        ConfigError: for a name that no module has, or whose module no adapter fits.
    """
    heads = {head: embedding for embedding, head in spec.tied_modules}
    modules = [module for kind in spec.architecture.adaptable for module in spec.modules(kind)]
    able = [module for module in modules if module not in heads]
    linear = [module for module in able if module not in {*spec.architecture.embeddings, "lm_head"}]
    kinds = {name: type(module).__name__ for name, module in ModelSpec(spec.config).build().named_modules() if name}
    found: dict[str, list[str]] = {}
    wrong: list[str] = []
    for target in [targets] if isinstance(targets, str) else targets or DEFAULT_TARGETS[spec.architecture.model_type]:
        if target == "all-linear":
            found[target] = linear
            continue
        named = [name for name in kinds if name == target or name.endswith(f".{target}")]
        found[target] = [heads.get(name, name) for name in named if name in modules]
        if not named:
            wrong.append(f"the model has no module {target!r}{suggest(target, _ends(able))}")
        elif not found[target]:
            what = ", ".join(sorted({kinds[name] for name in named}))
            wrong.append(f"{target!r} ({what}) cannot carry an adapter; modules that can are {', '.join(_ends(able))}")
    chosen = list(dict.fromkeys(name for names in found.values() for name in names))
    for target, names in found.items():
        # The head of a tied model has the embedding's adapter, if that is asked for too, as PEFT would need it.
        if target in heads and not any(names[0] in others for other, others in found.items() if other != target):
            wrong.append(f"{target!r} shares its weights with {heads[target]!r}: name that, its adapter is on both")
    if wrong:
        raise ConfigError("\n".join(f"lora_target_modules: {what}" for what in wrong))
    return chosen


def _ends(names: list[str]) -> list[str]:
    """c_attn, c_proj, wte, ... of full names."""
    return sorted({name.rpartition(".")[2] for name in names})
