"""Optimizers by name, their default weight decay, and which parameters decay.

The short names stand for classes of `torch.optim`, with the options that people mean by them; every other optimizer of
`transformers.Trainer` goes by its name there (`optim`).
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Adam
from transformers import Trainer, TrainingArguments

from morphing_trainer.errors import ConfigError, suggest
from morphing_trainer.lineage import ModelSpec

SKIP_MARK = "skip_weight_decay"
"""A parameter with this attribute set to True does not decay, nor does what descends from it."""

DEFAULT = str(TrainingArguments.default_optim)
"""AdamW in one fused kernel, where torch has it: what `Trainer` uses."""

ShortName = Literal["adamw", "adam", "adagrad", "sgd", "rmsprop"]

_AS_OPTIM: dict[ShortName, str] = {
    "adamw": DEFAULT,
    "adam": DEFAULT,
    "adagrad": "adagrad",
    "sgd": "sgd",
    "rmsprop": "rmsprop",
}
"""Short name -> the name in Trainer's `optim`. Adam has none there and is made with AdamW's options."""

_ALGORITHM: dict[str, ShortName] = {
    "adamw_torch": "adamw",
    DEFAULT: "adamw",
    "adagrad": "adagrad",
    "sgd": "sgd",
    "rmsprop": "rmsprop",
}
_EXTRAS = {
    "adamw": ("amsgrad",),
    "adam": ("amsgrad",),
    "adagrad": ("lr_decay", "eps"),
    "sgd": ("momentum", "dampening", "nesterov"),
    "rmsprop": ("momentum", "alpha", "eps", "centered"),
}
"""Algorithm -> what `optim_args` may say of it."""

_SWITCHES = ("amsgrad", "nesterov", "centered")
_MOMENTUM = {"sgd": 0.9, "rmsprop": 0.0}


def name_of(optim: Any) -> str:
    """The plain text of a value of `optim`."""
    return str(optim.value if isinstance(optim, Enum) else optim)


def optim_for(optimizer: ShortName | None, optim: Any) -> str:
    """The value of Trainer's `optim` under the short name `optimizer`; either may be None for "not given".

    Raises:
        ConfigError: if both are given and say different things, or the short name is unknown.
    """
    if optimizer is None:
        return DEFAULT if optim is None else name_of(optim)
    if optimizer not in _AS_OPTIM:
        raise ConfigError(f"optimizer: unknown {optimizer!r}{suggest(optimizer, _AS_OPTIM)}")
    if optim is not None and _ALGORITHM.get(name_of(optim)) == optimizer:
        return name_of(optim)
    if optim is not None and name_of(optim) != _AS_OPTIM[optimizer]:
        raise ConfigError(
            f"optimizer: {optimizer!r} stands beside optim: {name_of(optim)!r}, which names another one; "
            "remove one of them."
        )
    return _AS_OPTIM[optimizer]


def default_weight_decay(optimizer: str | None, optim: Any) -> float:
    """0.01 for every kind of AdamW, as in torch; 0 for all others."""
    return 0.01 if "adamw" in (optimizer or name_of(optim)) else 0.0


def resolved(
    optimizer: ShortName | None, optim: Any, optim_args: str | None, momentum: float | None
) -> tuple[ShortName | None, float | None]:
    """The short name of the optimizer, if it has one, and its momentum, if that is not in `optim_args`.

    Args:
        optim: a value of Trainer's option, never None.

    Raises:
        ConfigError: for an option that the optimizer would ignore, or not take.
    """
    algorithm = optimizer or _ALGORITHM.get(name_of(optim))
    extras = _pairs(optim_args)
    if "weight_decay" in extras:
        raise ConfigError("optim_args: weight_decay has no effect here; give it as weight_decay.")
    if momentum is not None and algorithm not in _MOMENTUM:
        raise ConfigError(
            f"momentum: {optimizer or name_of(optim)} has none to set; it is an option of sgd and rmsprop "
            "(Adam's are adam_beta1 and adam_beta2)."
        )
    if momentum is not None and "momentum" in extras:
        raise ConfigError("momentum: stands beside momentum in optim_args; remove one of them.")
    if algorithm is None:
        return None, None  # one of Trainer's own, which knows what it takes
    for name, text in extras.items():
        if name not in _EXTRAS[algorithm]:
            raise ConfigError(f"optim_args: {algorithm} has no option {name!r}{suggest(name, _EXTRAS[algorithm])}.")
        _value(name, text)
    if algorithm in _MOMENTUM and momentum is None and "momentum" not in extras:
        # By Trainer's own name it is Trainer's own: sgd without momentum.
        momentum = _MOMENTUM[algorithm] if optimizer else 0.0
    return algorithm, momentum


def class_and_options(args: Any, model: Any = None) -> tuple[Any, dict[str, Any]]:
    """The optimizer that the arguments name, as `Trainer.get_optimizer_cls_and_kwargs` gives it.

    Args:
        args: a `MorphingConfig`.
    """
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    if args.optimizer is None:
        return kind, options
    extras = {name: _value(name, text) for name, text in _pairs(args.optim_args).items()}
    if args.momentum is not None:
        extras["momentum"] = args.momentum
    return Adam if args.optimizer == "adam" else kind, {**options, **extras}


def check_made(args: Any) -> None:
    """Make the optimizer over one number, so that values it refuses are found before training.

    Raises:
        ConfigError: with what it says.
    """
    if args.optimizer is None:
        return
    kind, options = class_and_options(args)
    try:
        kind([nn.Parameter(torch.zeros(1))], **options)
    except ValueError as error:
        raise ConfigError(f"optimizer: {kind.__name__} cannot be made: {error}") from error


def decayed(spec: ModelSpec, skipped: frozenset[str] = frozenset()) -> frozenset[str]:
    """Names of the parameters that weight decay acts on: all but biases, LayerNorms, embeddings and `skipped` ones.

    The matrices of an adapter do as the weight that they adapt, so an embedding's do not decay. A head that is tied to
    the embedding is the embedding.
    """
    chosen = set()
    for name in spec.shapes:
        adapter = spec.adapter_at(name)
        host = adapter.host if adapter else name
        module = spec.name_before(host).rpartition(".")[0]
        is_matrix = len(spec.shapes[host]) > 1
        if is_matrix and module not in spec.architecture.embeddings and not {name, host} & skipped:
            chosen.add(name)
    return frozenset(chosen)


def marked(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that carry `skip_weight_decay = True`."""
    return frozenset(name for name, parameter in model.named_parameters() if getattr(parameter, SKIP_MARK, False))


def _pairs(optim_args: str | None) -> dict[str, str]:
    """`a=1, b=true` as a mapping."""
    pairs = [item.partition("=") for item in (optim_args or "").replace(" ", "").split(",") if item]
    for name, equals, text in pairs:
        if not (name and equals and text):
            raise ConfigError(f"optim_args: {optim_args!r} is not of the form name=value,name=value.")
    return {name: text for name, _, text in pairs}


def _value(name: str, text: str) -> float | bool:
    if name in _SWITCHES:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"optim_args: {name} must be true or false, is {text!r}.")
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"optim_args: {name} must be a number, is {text!r}.") from None
