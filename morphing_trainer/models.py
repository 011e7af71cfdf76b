"""GPT-2 models: loaded from a folder or the Hub, completely or not at all, or newly made from a seed.

A loaded model is in evaluation mode and a new one in training mode, as `transformers` gives them.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel
from transformers.activations import ACT2FN

from morphing_trainer.checkpoint import adapters
from morphing_trainer.errors import ConfigError, ModelError, MorphError, suggest
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.lora import load_adapters, saved_adapters
from morphing_trainer.reading import read_json

DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")

MOST_CONFIG_BYTES = 16 << 20
SMALL_PARAMETERS = 10_000_000
"""There is always room for so many; what is wrong with their weights is told when they are read."""

_CONFIG_FILE = "config.json"
_WEIGHTS_FILE = "model.safetensors"
_WEIGHT_FILES = [
    _CONFIG_FILE,
    "generation_config.json",
    _WEIGHTS_FILE,
    f"{_WEIGHTS_FILE}.index.json",
    "model-*-of-*.safetensors",
    adapters.CONFIG,
    adapters.WEIGHTS,
]
MASK_BUFFER = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias")  # of the original layout: no parameters
_INSTEAD = (
    "give a GPT-2 checkpoint such as 'openai-community/gpt2', or leave model_name_or_path out to make a new model"
)


def load_model(
    name_or_path: str,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    dropout: float | None = None,
) -> GPT2LMHeadModel:
    """Load a GPT-2 from a local folder or a Hub id, every weight of it, in evaluation mode.

    Weights are read from `safetensors` only, and no code from the repository is run. The layout of the original
    `gpt2` (no `transformer.` prefix, mask buffers) is understood. Without a network the Hub cache is used. LoRA
    adapters that are saved beside their base model come with it.

    Args:
        revision: branch, tag or commit of a Hub repository.
        dtype: one of `DTYPES` or a torch type. None is float32: half-precision weights lose small updates in training.
        attn_implementation: as in `from_pretrained`.
        dropout: replaces the embedding, attention and residual dropout of the checkpoint; None keeps them.

    Raises:
        ModelError: there is no such model, it cannot be reached or read, it is not a GPT-2, or weights are missing,
            left over or of another shape.
        ConfigError: `dtype`, `attn_implementation`, `dropout` or `revision` cannot be used.
    """
    where = f"model_name_or_path {name_or_path!r}"
    weight_type = _dtype(dtype)
    _check_dropout(dropout)
    folder, config = find_weights(name_or_path, revision)
    _check_size(folder, config, where)
    if dropout is not None:
        config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = dropout
    load: Any = GPT2LMHeadModel.from_pretrained
    has_adapters = (folder / adapters.CONFIG).is_file()
    try:
        # Given the folder, transformers would attach the adapters as well, and report on them only.
        source = {"state_dict": _state(folder)} if has_adapters else {}
        model, report = load(
            None if has_adapters else folder,
            **source,
            config=config,
            dtype=weight_type,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if attn_implementation is not None and "attn" in str(error).lower():
            raise ConfigError(f"attn_implementation: {attn_implementation!r} cannot be used: {error}") from error
        raise ModelError(f"{where}: its weights cannot be loaded: {error} {_advice(error)}") from error
    _check_complete(model, report, where)
    model.config._name_or_path = name_or_path  # rather than the folder in the cache
    model = _shifting(model)
    if not has_adapters:
        return model
    try:
        return _shifting(load_adapters(model, folder))
    except MorphError as error:
        raise ModelError(f"{where}: {error}") from error


def find_weights(name_or_path: str, revision: str | None = None, also: Collection[str] = ()) -> tuple[Path, GPT2Config]:
    """The folder that holds a model, which is downloaded if it is on the Hub, and its config.

    Args:
        also: names of further files that are wanted, if the repository has them.

    Raises:
        ModelError, ConfigError: as `load_model`, for what can be seen without reading weights.
    """
    where = f"model_name_or_path {name_or_path!r}"
    folder = _local_folder(name_or_path, where)
    if folder is None:
        folder = _download(name_or_path, revision, [_CONFIG_FILE], where)
        config = _read_config(folder, where)  # before the weights: another model may be very large
        # The snapshot's folder is named after its commit, so that a branch that moves meanwhile does no harm.
        folder = _download(name_or_path, folder.name, [*_WEIGHT_FILES, *also], where)
    elif revision is not None:
        raise ConfigError(
            f"model_revision: {revision!r} has no meaning for the local folder {name_or_path!r}; remove it"
        )
    else:
        config = _read_config(folder, where)
    return folder, config


def describe_model(name_or_path: str, *, revision: str | None = None) -> ModelSpec:
    """The description of a model in a local folder or on the Hub, with the adapters beside it. No weights are read.

    Raises:
        ModelError: there is no such model, it cannot be reached or read, or it is not a GPT-2.
        ConfigError: `revision` has no meaning for a local folder.
    """
    where = f"model_name_or_path {name_or_path!r}"
    folder = _local_folder(name_or_path, where)
    if folder is None:
        folder = _download(name_or_path, revision, [_CONFIG_FILE, adapters.CONFIG], where)
    elif revision is not None:
        raise ConfigError(f"revision: {revision!r} has no meaning for the local folder {name_or_path!r}; remove it")
    spec = ModelSpec(_read_config(folder, where))
    if not (folder / adapters.CONFIG).is_file():
        return spec
    try:
        return ModelSpec(spec.config, adapter=saved_adapters(spec, folder))
    except MorphError as error:
        raise ModelError(f"{where}: {error}") from error


class Shape(Protocol):
    """What a new model is made from, e.g. the command line's `ModelArguments`."""

    n_layer: int
    n_head: int
    n_embd: int
    n_inner: int | None
    n_positions: int | None
    activation_function: str
    dropout: float | None
    attn_implementation: str | None
    dtype: Any


def new_model(config: GPT2Config, seed: int) -> GPT2LMHeadModel:
    """A model with weights drawn from `seed` alone, in training mode. The global random state is left as it was.

    Raises:
        ConfigError: `config` describes no model that can be built.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds the accelerators too
        try:
            model: Any = GPT2LMHeadModel(config)
        except (ValueError, KeyError, ImportError) as error:
            raise ConfigError(f"the new model cannot be built: {error}") from error
    if config.dtype is not None:
        model = model.to(config.dtype)
    return _shifting(model)


def _state(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of the base model in `folder`."""
    files, index = [_WEIGHTS_FILE], folder / f"{_WEIGHTS_FILE}.index.json"
    if not (folder / _WEIGHTS_FILE).is_file() and index.is_file():
        files = sorted({Path(name).name for name in read_json(index, MOST_CONFIG_BYTES)["weight_map"].values()})
    return {name: weight for file in files for name, weight in load_file(folder / file).items()}


def _shifting(model: Any) -> GPT2LMHeadModel:
    """transformers does not recognise this class as a causal model, and would count one label too many per sample."""
    assert isinstance(model, GPT2LMHeadModel)
    model.loss_type = "ForCausalLM"
    return model


def scratch_config(arguments: Shape, vocab_size: int, block_size: int, eos_token_id: int | None) -> GPT2Config:
    """The description of a new model, for `vocab_size` tokens and samples of `block_size` tokens.

    Raises:
        ConfigError: sizes that are not positive or do not fit together; one line per problem.
    """
    a = arguments
    positions = block_size if a.n_positions is None else a.n_positions
    sizes = {"n_layer": a.n_layer, "n_head": a.n_head, "n_embd": a.n_embd, "n_inner": a.n_inner}
    sizes |= {"n_positions": a.n_positions, "vocab_size": vocab_size, "block_size": block_size}
    wrong = [f"{name}: must be at least 1, is {n}" for name, n in sizes.items() if n is not None and n < 1]
    if a.n_head > 0 and a.n_embd % a.n_head:
        near = sorted({max(a.n_embd // a.n_head, 1) * a.n_head, (a.n_embd // a.n_head + 1) * a.n_head})
        wrong.append(f"n_embd: {a.n_embd} is not divisible by n_head {a.n_head}; try {' or '.join(map(str, near))}")
    if 0 < positions < block_size:
        wrong.append(f"block_size: {block_size} is longer than n_positions {positions}; lower it or raise n_positions")
    if eos_token_id is not None and not 0 <= eos_token_id < vocab_size:
        wrong.append(f"vocab_size: {vocab_size} has no room for the end-of-text token {eos_token_id}; raise it")
    if a.activation_function not in ACT2FN:
        wrong.append(f"activation_function: unknown {a.activation_function!r}{suggest(a.activation_function, ACT2FN)}")
    if wrong:
        raise ConfigError("\n".join(wrong))
    _check_dropout(a.dropout)
    dropout = 0.0 if a.dropout is None else float(a.dropout)
    weight_type = _dtype(a.dtype)
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "n_positions": positions,
        "n_embd": a.n_embd,
        "n_layer": a.n_layer,
        "n_head": a.n_head,
        "n_inner": a.n_inner,
        "activation_function": a.activation_function,
        "resid_pdrop": dropout,
        "embd_pdrop": dropout,
        "attn_pdrop": dropout,
        "bos_token_id": eos_token_id,
        "eos_token_id": eos_token_id,
        "dtype": torch.float32 if weight_type == "auto" else weight_type,
        "attn_implementation": a.attn_implementation,
    }
    return GPT2Config(**settings)


# --- Arguments ---


def _dtype(dtype: str | torch.dtype | None) -> Any:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype or torch.float32
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: unknown {dtype!r}{suggest(dtype, DTYPES)}")
    return dtype if dtype == "auto" else getattr(torch, dtype)


def _check_dropout(dropout: float | None) -> None:
    if dropout is not None and not 0 <= dropout < 1:
        raise ConfigError(f"dropout: must be at least 0 and below 1, is {dropout}")


# --- Finding the files ---


def _local_folder(name: str, where: str) -> Path | None:
    """The local folder, or None if `name` may be a Hub id."""
    try:
        path = Path(name).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a NUL byte, no such user
        raise ModelError(f"{where[:200]}: this cannot be a path ({error!s:.200}); check it") from error
    if is_folder and name:
        return path
    if is_file:
        raise ModelError(f"{where}: this is a file; give the folder that holds it and {_CONFIG_FILE}")
    if name.startswith(("/", ".", "~")):
        raise ModelError(f"{where}: there is no such folder; check the path")
    return None


def _download(name: str, revision: str | None, files: list[str], where: str) -> Path:
    """The folder in the Hub cache that holds those of `files` that the repository has."""
    hub = constants.ENDPOINT
    at = f" at revision {revision!r}" if revision else ""
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except GatedRepoError as error:
        what = f"access to it is restricted; ask for access at {hub}/{name}, then run `hf auth login`"
        raise ModelError(f"{where}: {what}") from error
    except RepositoryNotFoundError as error:
        what = (
            f"there is no such folder here, and no such model on {hub} that you may see; "
            "check the name, or run `hf auth login` if it is private"
        )
        raise ModelError(f"{where}: {what}") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{where}: has no revision {revision!r}; check model_revision on {hub}/{name}") from error
    except LocalEntryNotFoundError as error:
        what = (
            f"there is no such folder here, {hub} cannot be reached and the cache does not hold it{at} "
            f"({_reason(error)}); check the network, or give a local folder that holds the model"
        )
        raise ModelError(f"{where}: {what}") from error
    except HFValidationError as error:
        raise ModelError(f"{where}: there is no such folder, and it cannot be a Hub id; check the path") from error
    except Exception as error:  # the client's exception types depend on the HTTP library it was built with
        raise ModelError(f"{where}: downloading it from {hub} failed: {error}; try again later") from error


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    return (str(cause) or type(cause).__name__).splitlines()[0]


def _read_config(folder: Path, where: str) -> GPT2Config:
    path = folder / _CONFIG_FILE
    if not path.is_file():
        nested = sorted(str(p.parent) for p in folder.glob(f"*/{_CONFIG_FILE}"))
        hint = f"; did you mean {nested[-1]!r}?" if nested else f"; {_INSTEAD}"
        if (folder / adapters.CONFIG).is_file():
            hint = "; it holds adapters only: save them beside their base model, or merge them, and give that"
        raise ModelError(f"{where}: has no {_CONFIG_FILE}{hint}")
    try:
        raw = read_json(path, MOST_CONFIG_BYTES)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{where}: {_CONFIG_FILE} cannot be read: {error}; save or download the model again"
        ) from error
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if kind != "gpt2":
        what = f"is of model_type {kind!r}" if kind else f"{_CONFIG_FILE} names no model_type"
        raise ModelError(f"{where}: {what}, and only 'gpt2' is supported; {_INSTEAD}")
    if raw.get("quantization_config"):
        raise ModelError(
            f"{where}: its weights are quantised. Growing, merging and rank changes compute with the weights "
            "themselves, and quantising the result again would change the function; give it in float32 or bfloat16."
        )
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, AttributeError, StrictDataclassError, OverflowError) as error:
        raise ModelError(f"{where}: {_CONFIG_FILE} is not valid: {error}; correct it") from error
    assert isinstance(config, GPT2Config)
    if config.activation_function not in ACT2FN:
        what = f"activation_function {config.activation_function!r}{suggest(config.activation_function, ACT2FN)}"
        raise ModelError(f"{where}: {_CONFIG_FILE} has the unknown {what}")
    try:
        ModelSpec(config).checked()
    except ModelError as error:
        raise ModelError(f"{where}: {_CONFIG_FILE}: {error}") from error
    return config


def _check_size(folder: Path, config: GPT2Config, where: str) -> None:
    """Refuse weights that cannot be those of the config, before room is made for these."""
    index = folder / f"{_WEIGHTS_FILE}.index.json"
    try:
        if index.is_file() and not (folder / _WEIGHTS_FILE).is_file():
            names = read_json(index, MOST_CONFIG_BYTES)["weight_map"].values()
            if strangers := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
                raise ModelError(f"{where}: {index.name} names {strangers[0]!r}, which is no file beside it")
        held = sum(path.stat().st_size for path in folder.glob("model*.safetensors"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{where}: {index.name} cannot be read ({error}); download the model again") from error
    parameters = ModelSpec(config).parameters
    if held < parameters > SMALL_PARAMETERS:  # no type takes less than a byte
        raise ModelError(
            f"{where}: {_CONFIG_FILE} describes {parameters:,} parameters, and its weights are {held:,} bytes; "
            "save or download the model again"
        )


# --- Judging what was loaded ---


def _advice(error: BaseException) -> str:
    if isinstance(error, SafetensorError):
        return "The file is damaged; save or download the model again."
    if isinstance(error, OSError):
        return "Only safetensors are read: load the model where it was made and call save_pretrained again."
    return "Correct the checkpoint, or choose another."


def _check_complete(model: Any, report: dict[str, Any], where: str) -> None:
    """Raise ModelError unless the checkpoint held exactly the weights of the model. A tied head may be absent."""
    unexpected = [name for name in report["unexpected_keys"] if not MASK_BUFFER.fullmatch(name)]
    shapes = [f"{name} {tuple(has)} instead of {tuple(needs)}" for name, has, needs in report["mismatched_keys"]]
    wrong = [
        f"{what}: {_some(names)}"
        for what, names in (
            ("missing weights", report["missing_keys"]),
            ("weights that a GPT-2 language model does not have", unexpected),
            ("weights of another shape than config.json says", shapes),
        )
        if names
    ]
    if wrong:
        raise ModelError(
            f"{where}: does not fit its config.json: {'; '.join(wrong)}. Nothing is made up in their place: "
            "check that it is a complete GPT2LMHeadModel and not another kind of head"
        )
    if model.config.tie_word_embeddings and model.lm_head.weight is not model.transformer.wte.weight:
        raise ModelError(
            f"{where}: config.json ties lm_head to wte (tie_word_embeddings), but their weights differ; "
            'set "tie_word_embeddings": false in config.json to keep both'
        )


def _some(names: Collection[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
