"""Arguments of a run: config files give defaults, the command line wins, nothing wrong passes unnoticed.

Both sources become one dictionary of given values, each with its origin, so that an error can name file and line.
The command line is read by `HfArgumentParser` over the three dataclasses; file values are held against the same types.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import math
import re
import types
from argparse import SUPPRESS, Action, ArgumentDefaultsHelpFormatter, ArgumentError, Namespace
from argparse import RawDescriptionHelpFormatter as RawHelp
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser
from transformers.trainer_pt_utils import AcceleratorConfig

from morphing_trainer.config import MorphingConfig
from morphing_trainer.documents import load_document
from morphing_trainer.errors import ConfigError, Problem, suggest

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

    dataset_name: str | None = _arg(None, "Dataset for `datasets.load_dataset`: a Hub id or a local folder.")
    dataset_config: str | None = _arg(None, "Configuration of the dataset, e.g. wikitext-2-raw-v1.")
    train_file: Texts = field(
        default=None, metadata={"help": "Local files to train on: .txt, .md, .jsonl, .json, .csv, .parquet."}
    )
    validation_file: Texts = field(default=None, metadata={"help": "Local files for evaluation, of the same kinds."})
    text_column: str = _arg("text", "Column that holds the text, where there are columns.")
    validation_split: float = _arg(
        0.05, "Share of the training text kept for evaluation if there is no validation set."
    )
    block_size: int = _arg(128, "Tokens per training sample; the text is packed into blocks of this length.")
    tokenizer_name: str | None = _arg(
        None, "Tokenizer: a local folder or a Hub id. Default: the checkpoint's, or one trained on the training text."
    )


class Arguments(NamedTuple):
    """Everything a run is told."""

    model: ModelArguments
    data: DataArguments
    training: MorphingConfig


def parse(argv: Sequence[str], prog: str = "train.py") -> Arguments:
    """Read `--config` files and the other arguments in `argv` (without the program's name).

    A later file wins over an earlier one, the command line over all; `null` in a file means "not given". Paths are
    relative to the current folder. `output_dir` defaults to `runs/<stem of the last config file>`, else `runs/run`;
    `resume_from_checkpoint` is `"true"`, a path or None.

    Raises:
        ConfigError: unknown names, wrong types and values, settings that exclude each other; one line per problem.
        DocumentError: a config file cannot be read.
        SystemExit: with code 0 after `--help`.
    """
    from_command_line, files = _read_command_line(argv, prog)
    given: dict[str, _Given] = {}
    problems: list[Problem] = []
    for rank, path in enumerate(files):
        from_file, found = _read_file(path, rank)
        given |= from_file
        problems += found
    given |= {name: _Given(value, "command line", len(files)) for name, value in from_command_line.items()}
    problems += _value_problems(given)
    if problems:
        raise ConfigError("\n".join(map(str, problems)))
    values = {name: item.value for name, item in given.items()}
    if values.get("output_dir") is None:
        values["output_dir"] = f"runs/{Path(files[-1]).stem if files else 'run'}"
    try:
        return Arguments(*(cls(**{n: values[n] for n in fields if n in values}) for cls, fields in _FIELDS.items()))
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:  # from TrainingArguments and our config
        raise ConfigError(f"{_origin(str(error), given)}: {error}") from error


def _origin(message: str, given: Mapping[str, _Given]) -> str:
    """Where the arguments that an error of `MorphingConfig` is about were given."""
    lead = message.partition(":")[0]
    named = [lead] if lead in given else [name for name in given if re.search(rf"\b{name}\b", message)]
    return ", ".join(dict.fromkeys(given[name].where for name in named)) or "training arguments"


class _Given(NamedTuple):
    """A value somebody wrote, where, and the rank of that source: files in order, then the command line."""

    value: Any
    where: str
    rank: int


class _Field(NamedTuple):
    hint: Any
    default: dataclasses.Field[Any]
    metadata: Mapping[str, Any]


_TITLES = {ModelArguments: "model", DataArguments: "data", MorphingConfig: "training"}
_NOT_TEXT = {"parallelism_config"}  # takes an object
_NOT_IN_HELP = {"deepspeed", "auto_find_batch_size", "enable_jit_checkpoint", "logging_nan_inf_filter", "local_rank"}
_HINTS: dict[str, Any] = {  # where TrainingArguments' own type leaves the command line less than a file
    "report_to": Texts,
    "include_num_input_tokens_seen": Literal["no", "all", "non_padding"],
}
_FAMILIAR = {"lr": "learning_rate", "epochs": "num_train_epochs", "schedule": "scaling_schedule_file"}
_HELP = {
    "output_dir": "Folder of the run. Default: runs/<name of the config file>.",
    "resume_from_checkpoint": "Go on with the run in `output_dir` (true), or with the checkpoint in the folder given.",
}


def _fields(cls: type) -> dict[str, _Field]:
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
        result[entry.name] = _Field(hint, entry, metadata)
    return result


_FIELDS: dict[type, dict[str, _Field]] = {cls: _fields(cls) for cls in _TITLES}
_ALL: dict[str, _Field] = {name: entry for fields in _FIELDS.values() for name, entry in fields.items()}
_UNSET = object()
_FLAG = (bool, bool | None)


# --- The command line ---


class _Parser(HfArgumentParser):  # type: ignore[misc, unused-ignore]
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}")


class _Help(ArgumentDefaultsHelpFormatter, RawHelp):
    """One spelling per option, the kind of value it takes, and defaults that say something."""

    def add_argument(self, action: Action) -> None:
        hidden = action.dest in _NOT_IN_HELP or any(o.startswith("--no_") for o in action.option_strings)
        if not hidden:
            super().add_argument(action)

    def _format_action_invocation(self, action: Action) -> str:
        if action.nargs == 0:
            return ", ".join(action.option_strings)
        entry = _ALL.get(action.dest)
        choices = _choices(entry) if entry else ()
        kind = "|".join(choices) if 0 < len(choices) < 8 else action.metavar or (action.dest.split("_")[-1].upper())
        return f"{action.option_strings[0]} {'[true|false]' if entry and entry.hint in _FLAG else kind}"

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if action.default in (None, "", SUPPRESS) or action.default == []:
            return text
        shown = str(action.default).lower() if isinstance(action.default, bool) else str(action.default)
        return f"{text} (default: {shown.replace('%', '%%')})"


def _parser(prog: str) -> _Parser:
    def view(cls: type, title: str) -> Any:
        """The dataclass as `HfArgumentParser` shall see it: with group title and amended metadata."""
        columns = []
        for name, (hint, entry, metadata) in _FIELDS[cls].items():
            column = field(metadata=metadata)
            column.default, column.default_factory = entry.default, entry.default_factory
            columns.append((name, hint, column))
        return dataclasses.make_dataclass(cls.__name__, columns, namespace={"_argument_group_name": title})

    parser = _Parser(
        [view(cls, f"{name} arguments") for cls, name in _TITLES.items()],
        prog=prog,
        usage="%(prog)s [--config FILE ...] [--any_argument VALUE ...]",
        description="Train a GPT-2 that grows and changes while it trains, as a schedule file says.\n"
        "Config files (YAML or JSON) give defaults with the names below; the command line wins.",
        epilog="examples:\n"
        "  accelerate launch %(prog)s --config configs/demo.yaml\n"
        "  accelerate launch %(prog)s --config configs/demo.yaml --learning_rate 1e-3 --no_bf16 --max_steps=200\n"
        "  accelerate launch %(prog)s --config configs/demo.yaml --resume_from_checkpoint true",
        formatter_class=_Help,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument(
        "--config", nargs="+", action="extend", metavar="FILE", help="YAML or JSON config files; a later one wins."
    )
    for name, entry in _ALL.items():
        if entry.hint in _FLAG and entry.default.default is not True:  # the others have one already
            no = (f"--no_{name}", f"--no-{name.replace('_', '-')}")
            parser.add_argument(*no, dest=name, action="store_false", default=None)
    return parser


def _read_command_line(argv: Sequence[str], prog: str) -> tuple[dict[str, Any], list[str]]:
    """Values given by the options in `argv`, and the config files."""
    parser = _parser(prog)
    # argparse leaves attributes alone that are there already, so what is not given stays _UNSET.
    blank = Namespace(**dict.fromkeys(_ALL, _UNSET), config=None)
    try:
        namespace, rest = parser.parse_known_args(list(argv), blank)
    except ArgumentError as error:
        raise ConfigError(f"command line: {_argparse_message(error)}") from None
    if unknown := [item.split("=")[0] for item in rest if item.startswith("-")]:
        raise ConfigError("\n".join(f"command line: {o}: no such option{_nearest(o, '--')}" for o in unknown))
    if rest:
        raise ConfigError(f"command line: unexpected {rest[0]!r}; arguments are written --name value")
    files = vars(namespace).pop("config") or []
    values = {name: value for name, value in vars(namespace).items() if value is not _UNSET}
    return {name: _flag(value, _ALL[name]) for name, value in values.items()}, files


def _argparse_message(error: ArgumentError) -> str:
    option = (error.argument_name or "").split("/")[0]
    entry = _ALL.get(option.lstrip("-"))
    expected = f"expected {_describe(entry)}" if entry else "expected a file"
    if error.message.startswith("expected"):
        return f"{option}: a value is missing; {expected}"
    invalid = re.match(
        r"invalid (?:choice|.* value): (.*?)(?: \(choose from.*)?$|Truthy value expected: got (.*) but", error.message
    )
    value = next(filter(None, invalid.groups()), "''").strip("'\"") if invalid else error.message
    if entry and (choices := _choices(entry)):
        return f"{option}: {value!r} is not a valid value{suggest(value, choices)}"
    return f"{option}: {expected}, got {value!r}"


def _nearest(name: str, prefix: str = "") -> str:
    bare = name.lstrip("-").replace("-", "_")
    parts = [known for known in _ALL if len(bare) > 3 and bare in known]
    near = [_FAMILIAR[bare]] if bare in _FAMILIAR else parts or difflib.get_close_matches(bare, _ALL, n=1)
    return f"; did you mean {prefix + near[0]!r}?" if near else "; --help lists all names"


# --- Config files ---


def _read_file(path: str, rank: int) -> tuple[dict[str, _Given], list[Problem]]:
    document = load_document(path)
    if not isinstance(document.data, dict):
        raise ConfigError(f"{path}: expected `name: value` pairs, got {_show(document.data)}")
    given, problems = {}, list(document.problems)
    for name, value in document.data.items():
        where = f"{path}:{document.lines[name,]}"
        if name not in _ALL:
            problems.append(Problem(where, f"{name}: no such argument{_nearest(name)}"))
        elif value is not None:
            entry = _ALL[name]
            try:
                given[name] = _Given(_convert(_flag(value, entry), entry), where, rank)
            except (TypeError, OverflowError):
                problems.append(Problem(where, f"{name}: {_mismatch(value, entry)}"))
    return given, sorted(problems, key=lambda problem: int(problem.where.rpartition(":")[2]))


def _flag(value: Any, entry: _Field) -> Any:
    """`true` and `false` for an option that may be given bare or with a text (`fsdp`, `resume_from_checkpoint`)."""
    if "const" not in entry.metadata or entry.hint != str | None:
        return value
    return {"true": entry.metadata["const"], "false": None}.get(str(value).lower(), value)


def _convert(value: Any, entry: _Field) -> Any:
    """`value` as the command line would give it. Raises TypeError or OverflowError if it does not fit."""
    if value is None or value is entry.metadata.get("const"):
        return value
    choices = _choices(entry)
    if choices and value not in choices:
        raise TypeError
    return _as(value, entry.hint)


def _as(value: Any, hint: Any) -> Any:
    kind = get_origin(hint) or hint
    if kind in (Union, types.UnionType):
        for option in _options(hint):
            with contextlib.suppress(TypeError):
                return _as(value, option)
    elif kind is list and type(value) is list:
        return [_as(item, get_args(hint)[0]) for item in value]
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif kind is Literal or type(value) is kind:
        return value
    raise TypeError


def _options(hint: Any) -> list[Any]:
    """The alternatives of a type, None aside."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [option for option in options if option is not type(None)]


def _choices(entry: _Field) -> tuple[str, ...]:
    """The only texts that an argument takes; empty if it is free."""
    if get_origin(entry.hint) is Literal:
        return get_args(entry.hint)
    items = [get_args(option)[0] if get_origin(option) is list else option for option in _options(entry.hint)]
    enums = [item for item in items if isinstance(item, type) and issubclass(item, Enum)]
    return tuple(member.value for member in enums[0]) if enums else tuple(entry.metadata.get("choices") or ())


def _describe(entry: _Field) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list of texts"}
    kinds = [names.get(get_origin(option) or option, "a mapping") for option in _options(entry.hint)]
    if choices := _choices(entry):
        return "one of " + ", ".join(choices)
    return "a mapping" if "a mapping" in kinds else " or ".join(dict.fromkeys(kinds))


def _show(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f"the text {value!r}"
        case list() | dict():
            return "a list" if isinstance(value, list) else "a mapping"
    return f"the number {value}"


def _mismatch(value: Any, entry: _Field) -> str:
    if isinstance(value, str) and (choices := _choices(entry)):
        return f"{value!r} is not a valid value{suggest(value, choices)}"
    advice, kinds = "", _options(entry.hint)
    if isinstance(value, str) and (int in kinds or float in kinds) and _NUMBER.fullmatch(value):
        advice = "; remove the quotes"
    elif isinstance(value, int | float) and str in kinds and dict not in kinds:
        advice = "; put it in quotes"
    return f"expected {_describe(entry)}, got {_show(value)}{advice}"


_NUMBER = re.compile(r"\s*[-+]?[\d_.]+(e[-+]?\d+)?\s*", re.IGNORECASE)


# --- Values, whatever their source ---

_AT_LEAST = {
    **dict.fromkeys(("n_layer", "n_head", "n_embd", "n_inner", "n_positions", "vocab_size"), 1),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "adam_epsilon", "num_train_epochs"), 0),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps", "warmup_steps", "seed", "data_seed"), 0),
    "eval_iters": 1,
    "dataloader_num_workers": 0,
    "block_size": 2,
}
_SHARE = {"dropout", "validation_split", "adam_beta1", "adam_beta2", "label_smoothing_factor"}  # in [0, 1)
_NEW_MODEL = ("n_layer", "n_head", "n_embd", "n_inner", "n_positions", "vocab_size", "activation_function")


def _value_problems(given: Mapping[str, _Given]) -> Iterator[Problem]:
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


def _value_problem(name: str, value: Any) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, is {value}"
    if name in _AT_LEAST and value is not None and value < _AT_LEAST[name]:
        return f"must be at least {_AT_LEAST[name]}, is {value}"
    if name in _SHARE and value is not None and not 0 <= value < 1:
        return f"must be at least 0 and below 1, is {value}"
    if name in ("seed", "data_seed") and value is not None and value >= 2**32:
        return f"must be below 2**32, is {value}"
    if name == "max_steps" and value < 1 and value != -1:
        return f"must be at least 1, or -1 to train for num_train_epochs, is {value}"
    if name == "deepspeed":
        return "not supported; use FSDP2 or DDP instead (see accelerate_configs/)"
    if name == "output_dir" and value == "":
        return "is empty; give a folder"
    if isinstance(value, str | dict) and any(
        dict in (option, get_origin(option)) for option in _options(_ALL[name].hint)
    ):
        return _mapping_problem(name, value)
    return None


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
        return None if Path(value).is_file() else f"there is no file {value!r}; give JSON or the path of a JSON file"
    if name == "accelerator_config":
        valid = [entry.name for entry in dataclasses.fields(AcceleratorConfig)]
        return next((f"no such key {key!r}{suggest(key, valid)}" for key in value if key not in valid), None)
    return None
