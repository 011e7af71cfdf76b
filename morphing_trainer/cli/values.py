"""What makes a value wrong, whatever its source: limits, and arguments that exclude each other."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_origin

from transformers.trainer_pt_utils import AcceleratorConfig

from morphing_trainer.cli.groups import ALL, Given, options_of
from morphing_trainer.errors import MorphError, Problem, suggest
from morphing_trainer.reading import path_fault
from morphing_trainer.run.finding import find_model
from morphing_trainer.run.folder import is_run

_AT_LEAST = {
    **dict.fromkeys(("n_layer", "n_head", "n_embd", "n_inner", "n_positions", "vocab_size"), 1),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "adam_epsilon", "num_train_epochs"), 0),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps", "warmup_steps", "seed", "data_seed"), 0),
    **dict.fromkeys(("attn_lora_rank_divisor", "vocab_lora_rank_divisor"), 0),
    **dict.fromkeys(("batch_size", "mini_batch_size", "early_stopping_patience"), 1),
    **dict.fromkeys(("momentum", "early_stopping_threshold", "optimizer_warmup_steps"), 0),
    "lora_r": 1,
    "eval_iters": 1,
    "eval_example_tokens": 1,
    "analysis_evals": 1,
    "nan_limit": 1,
    "dataloader_num_workers": 0,
    "block_size": 2,
    **dict.fromkeys(("max_documents", "preprocessing_num_workers"), 1),
}
_SHARE = {"dropout", "lora_dropout", "validation_split", "adam_beta1", "adam_beta2", "label_smoothing_factor"}  # [0, 1)
_SHARE |= {"momentum", "optimizer_warmup_fraction"}
_OF_A_PLAN = ("dataset_name", "dataset_config", "train_file", "validation_file", "max_steps", "num_train_epochs")
_NEW_MODEL = ("n_layer", "n_head", "n_embd", "n_inner", "n_positions", "vocab_size", "activation_function")
_PATHS = {"output_dir", "resume_from_checkpoint", "scaling_schedule_file", "plan", "model_name_or_path"}
_PATHS |= {"tokenizer_name", "dataset_name", "train_file", "validation_file"}


def value_problems(given: Mapping[str, Given]) -> Iterator[Problem]:
    for name, (value, where, _) in given.items():
        if what := _value_problem(name, value):
            yield Problem(where, f"{name}: {what}")
    checkpoint = given.get("model_name_or_path")
    for name in _NEW_MODEL:
        # A file's shape gives way to a checkpoint named by a later source; the other way round, or side by side,
        # the shape would silently do nothing.
        if checkpoint and name in given and given[name].rank >= checkpoint.rank:
            what = f"has no effect with model_name_or_path {checkpoint.value!r}, which has its own; remove one of them"
            yield Problem(given[name].where, f"{name}: {what}")
    yield from _lora_problems(given)
    yield from _plan_problems(given)
    if "ignore_optimizer" in given and given["ignore_optimizer"].value and "resume_from_checkpoint" not in given:
        what = "has no effect without resume_from_checkpoint; a model that is loaded otherwise brings no optimizer"
        yield Problem(given["ignore_optimizer"].where, f"ignore_optimizer: {what}")


def _lora_problems(given: Mapping[str, Given]) -> Iterator[Problem]:
    """Ranks are given in one way, and then they are ranks of something."""
    divisors = [name for name in ("attn_lora_rank_divisor", "vocab_lora_rank_divisor") if name in given]
    for name in divisors:
        if "lora_r" in given and given[name].value:
            yield Problem(
                given["lora_r"].where, f"lora_r: stands beside {name} ({given[name].where}); remove one of them"
            )
    if "lora_target_modules" in given and "lora_r" not in given:
        yield Problem(given["lora_target_modules"].where, "lora_target_modules: have no rank; give lora_r")


def _plan_problems(given: Mapping[str, Given]) -> Iterator[Problem]:
    """A plan says by itself what is trained on, and for how long."""
    if "plan" not in given:
        return
    plan = given["plan"]
    for name in _OF_A_PLAN:
        if name in given:
            what = f"stands beside plan {plan.value!r} ({plan.where}), whose stages say it; remove one of them"
            yield Problem(given[name].where, f"{name}: {what}")


def _value_problem(name: str, value: Any) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, is {value}"
    if name in _AT_LEAST and value is not None and value < _AT_LEAST[name]:
        return f"must be at least {_AT_LEAST[name]}, is {value}"
    if name in _SHARE and value is not None and not 0 <= value < 1:
        return f"must be at least 0 and below 1, is {value}"
    if name == "lora_alpha" and value <= 0:
        return f"must be above 0, is {value}"
    if name in ("seed", "data_seed") and value is not None and value >= 2**32:
        return f"must be below 2**32, is {value}"
    if name == "max_steps" and value < 1 and value != -1:
        return f"must be at least 1, or -1 to train for num_train_epochs, is {value}"
    if name == "deepspeed":
        return "not supported; use FSDP2: accelerate launch --config_file accelerate_configs/fsdp2.yaml train.py ..."
    if name == "language" and not re.fullmatch("[a-z]{2,3}", value):
        return f"must be an ISO 639 code such as en or de, is {value!r}"
    if name in _PATHS and (fault := _paths_fault(value)):
        return fault
    if name == "model_name_or_path" and isinstance(value, str) and (fault := _run_fault(value)):
        return fault
    if name == "output_dir" and value == "":
        return "is empty; give a folder"
    if isinstance(value, str | dict) and any(
        dict in (option, get_origin(option)) for option in options_of(ALL[name].hint)
    ):
        return _mapping_problem(name, value)
    return None


def _paths_fault(value: Any) -> str | None:
    """Of a path, or the first of several."""
    paths = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    return next((fault for path in paths if isinstance(path, str) and (fault := path_fault(path))), None)


def _run_fault(name: str) -> str | None:
    """Of the folder of a run, which holds models, but is none."""
    if not Path(name).is_dir() or (Path(name) / "config.json").is_file() or not is_run(name):
        return None
    try:
        return f"{name!r} is a run; give {find_model(name)}"
    except MorphError as error:
        return str(error)


def _mapping_problem(name: str, value: str | dict[str, Any]) -> str | None:
    """Mappings may come as JSON text; some as the name of a JSON file."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except ValueError as error:
            return f"is not JSON: {error}; write it as '{{\"key\": 1}}'"
    if isinstance(value, str):
        if name not in ("accelerator_config", "fsdp_config"):
            return f"expected a mapping in a file, or JSON such as '{{\"key\": 1}}', got {value!r}"
        return None if os.path.isfile(value) else f"there is no file {value!r}; give JSON or the path of a JSON file"
    if name == "accelerator_config":
        valid = [entry.name for entry in dataclasses.fields(AcceleratorConfig)]
        return next((f"no such key {key!r}{suggest(key, valid)}" for key in value if key not in valid), None)
    return None
