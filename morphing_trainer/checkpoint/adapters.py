"""Adapters on disk as PEFT saves them: `adapter_config.json`, `adapter_model.safetensors`, and a complete base model.

Such a folder loads with `AutoModelForCausalLM.from_pretrained` (adapters included) and, over its base model, with
`PeftModel.from_pretrained`. The base is always saved along, because merges change it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from safetensors.torch import save_file
from torch import Tensor

from morphing_trainer.architectures import ADAPTER
from morphing_trainer.checkpoint.tensors import read_tensors
from morphing_trainer.errors import CheckpointError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.reading import read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

MOST_CONFIG_BYTES = 16 << 20
MOST_REPEATS = 3
"""`*`, `+` and `{2,}` in one pattern; matching takes the length of a name to this power."""

_REPEAT = re.compile(r"[*+]|\{\d*,")
_REPEATED_GROUP = re.compile(r"\)\s*[*+{]")

_HARMLESS = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin with an adapter that leave the base model as it is."""


def remove_adapters(folder: Path) -> None:
    """Remove what an earlier save has left in `folder`: it would be loaded with the model that is saved there next."""
    for name in (CONFIG, WEIGHTS):
        (folder / name).unlink(missing_ok=True)


def write_adapters(folder: Path, spec: ModelSpec, weights: Mapping[str, Tensor], home: Path) -> None:
    """Write the adapters among `weights` into `folder`.

    Args:
        home: where the folder will stand; `AutoPeftModelForCausalLM` looks for the base model there.
    """
    names, copies = saved_names(spec)
    tensors = {saved: weights[name].detach() for name, saved in names.items()}
    # Of its own memory, which the transpose of a rank-1 matrix would not be if it were only made contiguous.
    tensors |= {saved: tensors[owner].T.clone() for saved, owner in copies.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    write_config(folder, spec, home)


def write_config(folder: Path, spec: ModelSpec, home: Path) -> None:
    """Write `adapter_config.json` into `folder`; `home` as in `write_adapters`."""
    config = spec.peft_config
    config.base_model_name_or_path = str(home.resolve())
    config.inference_mode = True
    config.save_pretrained(str(folder))


def read_adapters(folder: Path, spec: ModelSpec) -> dict[str, Tensor]:
    """The adapters in `folder` under the names of `spec`: all of them, in their shapes, and no others.

    Raises:
        CheckpointError: naming what is missing, too much or of another shape.
    """
    path = folder / WEIGHTS
    tensors = read_tensors(path)
    names, copies = saved_names(spec)
    faults = [f"{saved} is missing" for saved in [*names.values(), *copies] if saved not in tensors]
    faults += [f"{saved} is not part of the model" for saved in tensors if saved not in {*names.values(), *copies}]
    faults += [
        f"{saved} has shape {list(tensors[saved].shape)}, expected {list(spec.shapes[name])}"
        for name, saved in names.items()
        if saved in tensors and tensors[saved].shape != spec.shapes[name]
    ]
    faults = faults or [
        f"{saved} is not {owner} transposed, though the model shares the weight that they adapt"
        for saved, owner in copies.items()
        if not torch.equal(tensors[saved], tensors[owner].T)
    ]
    if faults:
        shown = "; ".join(faults[:3])
        raise CheckpointError(f"{path}: does not fit its description: {shown} ({len(faults)} in all).")
    return {name: tensors[saved] for name, saved in names.items()}


def read_config(folder: Path) -> LoraConfig:
    """The `adapter_config.json` in `folder`.

    Raises:
        CheckpointError: if it cannot be read, or is not one of LoRA adapters.
    """
    try:
        _check_patterns(read_json(folder / CONFIG, MOST_CONFIG_BYTES))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of keys that another version of PEFT has written
            config = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise CheckpointError(f"{folder / CONFIG}: cannot be read ({error}); save the adapters again.") from error
    if not isinstance(config, LoraConfig):
        kind = type(config).__name__.removesuffix("Config")
        raise CheckpointError(f"{folder / CONFIG}: holds {kind} adapters; LoRA can be morphed.")
    if config.init_lora_weights not in _HARMLESS:
        raise CheckpointError(
            f"{folder / CONFIG}: init_lora_weights {config.init_lora_weights!r} changes the base model when adapters "
            "are loaded; convert them to plain LoRA with PEFT's path_initial_model_for_weight_conversion."
        )
    config.init_lora_weights = True  # the weights are read, so nothing is drawn, and no data asked for
    for name, alpha in {"lora_alpha": config.lora_alpha, **(config.alpha_pattern or {})}.items():
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < float("inf"):
            raise CheckpointError(f"{folder / CONFIG}: alpha ({name}) must be a positive number, is {alpha!r}.")
    return config


def _check_patterns(data: Any) -> None:
    """Refuse regular expressions that could keep PEFT busy for years; it matches them with every module's name.

    Raises:
        ValueError: naming the pattern.
    """
    if not isinstance(data, dict):
        raise ValueError("it is no mapping")
    patterns = [data.get(name) for name in ("target_modules", "exclude_modules", "layers_pattern", "target_parameters")]
    patterns += [key for name in ("rank_pattern", "alpha_pattern") for key in (data.get(name) or ())]
    for pattern in (each for each in patterns if isinstance(each, str)):
        repeats = len(_REPEAT.findall(pattern))
        if len(pattern) > 1_000 or _REPEATED_GROUP.search(pattern) or repeats > MOST_REPEATS:
            raise ValueError(f"the pattern {pattern[:60]!r} is too involved: list the modules by name")


def saved_names(spec: ModelSpec) -> tuple[dict[str, str], dict[str, str]]:
    """Parameter -> name in the file; and of a tied head's adapter: name in the file -> name of its transpose there."""
    names = {name: _saved(name) for name in spec.shapes if spec.adapter_at(name)}
    copies = {_saved(alias): names[owner] for alias, owner in spec.tied.items() if owner in names}
    return names, copies


def _saved(name: str) -> str:
    return f"base_model.model.{name.replace(f'.{ADAPTER}', '').replace('.parametrizations.weight.original', '.weight')}"
