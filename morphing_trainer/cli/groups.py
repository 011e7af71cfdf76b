"""The arguments of a run in their four groups, and what is known of each: type, default, help."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from morphing_trainer.config import MorphingConfig
from morphing_trainer.lora_arguments import LoraArguments

Texts = list[str] | None | str  # in this order HfArgumentParser takes several values for one option


def _arg(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class ModelArguments:
    """The starting model: a checkpoint (`model_name_or_path`), or else the shape of a new GPT-2."""

    model_name_or_path: str | None = _arg(
        None, "GPT-2 checkpoint to start from: a local folder or a Hub id. Without it a new model is made."
    )
    model_revision: str | None = _arg(None, "Branch, tag or commit of the Hub repository. Default: its main branch.")
    n_layer: int = _arg(4, "New model: blocks (depth).")
    n_head: int = _arg(4, "New model: attention heads per block; must divide n_embd.")
    n_embd: int = _arg(128, "New model: width of the residual stream.")
    n_inner: int | None = _arg(None, "New model: width of the MLP. Default: 4 * n_embd.")
    n_positions: int | None = _arg(None, "New model: longest sequence in tokens. Default: block_size.")
    vocab_size: int = _arg(
        2048, "New model: vocabulary of the tokenizer that is trained when tokenizer_name is not set."
    )
    activation_function: str = _arg(
        "gelu_pytorch_tanh", "New model: activation of the MLP. The default is GPT-2's gelu_new in one fused operation."
    )
    dropout: float | None = _arg(
        None, "Dropout of embeddings, attention and residual branches. Default: 0 if new, else the checkpoint's."
    )
    attn_implementation: str | None = _arg(
        None, "Attention code: sdpa, eager, flash_attention_2, ... Default: the best one available."
    )
    dtype: Literal["float32", "bfloat16", "float16", "float64", "auto"] = _arg(
        "float32", "Type of the weights; auto is the checkpoint's own. For mixed precision keep float32 and use --bf16."
    )


@dataclass
class DataArguments:
    """What to train on. Without a file or dataset: the language reference that comes with Python."""

    plan: str | None = _arg(
        None,
        "Training plan with stages that have their own data and length: a YAML or JSON file, or one of the built-in "
        "plans default (Wikipedia), wikitext, demo.",
    )
    dataset_name: str | None = _arg(
        None, "Dataset for `datasets.load_dataset`: a Hub id or a local folder; or a folder of `morph data prepare`."
    )
    dataset_config: str | None = _arg(None, "Configuration of the dataset, e.g. wikitext-2-raw-v1.")
    train_file: Texts = field(
        default=None, metadata={"help": "Local files to train on: .txt, .md, .jsonl, .json, .csv, .parquet."}
    )
    validation_file: Texts = field(default=None, metadata={"help": "Local files for evaluation, of the same kinds."})
    train_split: str = _arg("train", "Split of the dataset to train on.")
    text_column: str = _arg(
        "text", "Column that holds the text, where there are columns; title, prompt and truth are used when present."
    )
    validation_split: float = _arg(
        0.05, "Share of the training text kept for evaluation if there is no validation set."
    )
    streaming: bool = _arg(False, "Read the dataset as a stream: only its tokens are kept on disk.")
    max_documents: int | None = _arg(None, "Read at most so many documents, e.g. of an endless stream.")
    sample_mode: Literal["packing", "continuation"] | None = _arg(
        None,
        "packing: blocks of one length, documents joined by end-of-text. continuation: texts cut at sentences into "
        "samples that follow each other. Default: what the prepared folder holds, else packing.",
    )
    language: str = _arg("en", "Language of the text (ISO 639 code): where sentences end, for continuation.")
    block_size: int | None = _arg(
        None, "Tokens of the longest training sample. Default: what the prepared folder holds, else 128."
    )
    preprocessing_num_workers: int | None = _arg(
        None, "Processes that tokenise. Default: as many as there are processor cores, one for little text."
    )
    tokenizer_name: str | None = _arg(
        None, "Tokenizer: a local folder or a Hub id. Default: the checkpoint's, or one trained on the training text."
    )


class Given(NamedTuple):
    """A value somebody wrote, where, and the rank of that source: files in order, then the command line."""

    value: Any
    where: str
    rank: int


class Field(NamedTuple):
    hint: Any
    default: dataclasses.Field[Any]
    metadata: Mapping[str, Any]


TITLES = {ModelArguments: "model", DataArguments: "data", LoraArguments: "LoRA", MorphingConfig: "training"}
_NOT_TEXT = {"parallelism_config"}  # takes an object
NOT_IN_HELP = {"deepspeed", "auto_find_batch_size", "enable_jit_checkpoint", "logging_nan_inf_filter", "local_rank"}
_HINTS: dict[str, Any] = {  # where TrainingArguments' own type leaves the command line less than a file
    "report_to": Texts,
    "eval_metrics": Texts,
    "lora_target_modules": Texts,
    "train_only": Texts,
    "include_num_input_tokens_seen": Literal["no", "all", "non_padding"],
}
FAMILIAR = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "schedule": "scaling_schedule_file",
    **dict.fromkeys(("lora", "rank", "lora_rank"), "lora_r"),
}
_HELP = {
    "output_dir": "Folder of the run. Default: runs/<name of the config file>.",
    "resume_from_checkpoint": "Go on with the run in `output_dir` (true), or with the checkpoint in the folder given; "
    "auto goes on if `output_dir` holds a checkpoint, and else begins, with model_name_or_path if that is given.",
    "optim_args": "Further options of the optimizer, name=value,...: amsgrad (adam, adamw), dampening, nesterov (sgd), "
    "lr_decay and eps (adagrad), alpha, eps and centered (rmsprop), or of one that only Trainer knows.",
}


def _fields(cls: type) -> dict[str, Field]:
    """Fields of a dataclass with resolved types. Flags that may be unset can be given bare, as other flags can."""
    result = {}
    hints = get_type_hints(cls)
    for entry in dataclasses.fields(cls):
        if entry.name in _NOT_TEXT:
            continue
        metadata, hint = dict(entry.metadata), _HINTS.get(entry.name, hints[entry.name])
        metadata["help"] = _HELP.get(entry.name, metadata["help"])
        if hint == bool | None:
            metadata |= {"nargs": "?", "const": True}
        if entry.name == "resume_from_checkpoint":
            metadata |= {"nargs": "?", "const": "true"}
        result[entry.name] = Field(hint, entry, metadata)
    return result


FIELDS: dict[type, dict[str, Field]] = {cls: _fields(cls) for cls in TITLES}
ALL: dict[str, Field] = {name: entry for fields in FIELDS.values() for name, entry in fields.items()}
UNSET = object()
FLAG = (bool, bool | None)


def nearest(name: str, prefix: str = "") -> str:
    bare = name.lstrip("-").replace("-", "_")
    parts = [known for known in ALL if len(bare) > 3 and bare in known]
    near = [FAMILIAR[bare]] if bare in FAMILIAR else parts or difflib.get_close_matches(bare, ALL, n=1)
    return f"; did you mean {prefix + near[0]!r}?" if near else "; --help lists all names"


def options_of(hint: Any) -> list[Any]:
    """The alternatives of a type, None aside."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [option for option in options if option is not type(None)]


def choices_of(entry: Field) -> tuple[str, ...]:
    """The only texts that an argument takes; empty if it is free."""
    options = options_of(entry.hint)
    if len(options) == 1 and get_origin(options[0]) is Literal:
        return get_args(options[0])
    items = [get_args(option)[0] if get_origin(option) is list else option for option in options]
    enums = [item for item in items if isinstance(item, type) and issubclass(item, Enum)]
    return tuple(member.value for member in enums[0]) if enums else tuple(entry.metadata.get("choices") or ())


def describe(entry: Field) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list of texts"}
    kinds = [names.get(get_origin(option) or option, "a mapping") for option in options_of(entry.hint)]
    if choices := choices_of(entry):
        return "one of " + ", ".join(choices)
    return "a mapping" if "a mapping" in kinds else " or ".join(dict.fromkeys(kinds))
