"""The command line, read by `HfArgumentParser` over the three groups."""

from __future__ import annotations

import dataclasses
import re
from argparse import SUPPRESS, Action, ArgumentDefaultsHelpFormatter, ArgumentError, Namespace
from argparse import RawDescriptionHelpFormatter as RawHelp
from collections.abc import Sequence
from dataclasses import field
from typing import Any, NoReturn

from transformers import HfArgumentParser

from morphing_trainer.cli.config_files import flag
from morphing_trainer.cli.groups import (
    ALL,
    FIELDS,
    FLAG,
    NOT_IN_HELP,
    TITLES,
    UNSET,
    choices_of,
    describe,
    nearest,
)
from morphing_trainer.errors import ConfigError, suggest


class _Parser(HfArgumentParser):  # type: ignore[misc, unused-ignore]
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}")


class _Help(ArgumentDefaultsHelpFormatter, RawHelp):
    """One spelling per option, the kind of value it takes, and defaults that say something."""

    def add_argument(self, action: Action) -> None:
        hidden = action.dest in NOT_IN_HELP or any(o.startswith("--no_") for o in action.option_strings)
        if not hidden:
            super().add_argument(action)

    def _format_action_invocation(self, action: Action) -> str:
        if action.nargs == 0:
            return ", ".join(action.option_strings)
        entry = ALL.get(action.dest)
        choices = choices_of(entry) if entry else ()
        kind = "|".join(choices) if 0 < len(choices) < 8 else action.metavar or (action.dest.split("_")[-1].upper())
        return f"{action.option_strings[0]} {'[true|false]' if entry and entry.hint in FLAG else kind}"

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
        for name, (hint, entry, metadata) in FIELDS[cls].items():
            column = field(metadata=metadata)
            column.default, column.default_factory = entry.default, entry.default_factory
            columns.append((name, hint, column))
        return dataclasses.make_dataclass(cls.__name__, columns, namespace={"_argument_group_name": title})

    parser = _Parser(
        [view(cls, f"{name} arguments") for cls, name in TITLES.items()],
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
    for name, entry in ALL.items():
        if entry.hint in FLAG and entry.default.default is not True:  # the others have one already
            no = (f"--no_{name}", f"--no-{name.replace('_', '-')}")
            parser.add_argument(*no, dest=name, action="store_false", default=None)
    return parser


def read_command_line(argv: Sequence[str], prog: str) -> tuple[dict[str, Any], list[str]]:
    """Values given by the options in `argv`, and the config files."""
    parser = _parser(prog)
    # argparse leaves attributes alone that are there already, so what is not given stays UNSET.
    blank = Namespace(**dict.fromkeys(ALL, UNSET), config=None)
    try:
        namespace, rest = parser.parse_known_args(list(argv), blank)
    except ArgumentError as error:
        raise ConfigError(f"command line: {_argparse_message(error)}") from None
    if unknown := [item.split("=")[0] for item in rest if item.startswith("-")]:
        raise ConfigError("\n".join(f"command line: {o}: no such option{nearest(o, '--')}" for o in unknown))
    if rest:
        raise ConfigError(f"command line: unexpected {rest[0]!r}; arguments are written --name value")
    files = vars(namespace).pop("config") or []
    values = {name: value for name, value in vars(namespace).items() if value is not UNSET}
    return {name: flag(value, ALL[name]) for name, value in values.items()}, files


def _argparse_message(error: ArgumentError) -> str:
    option = (error.argument_name or "").split("/")[0]
    entry = ALL.get(option.lstrip("-"))
    expected = f"expected {describe(entry)}" if entry else "expected a file"
    if error.message.startswith("expected"):
        return f"{option}: a value is missing; {expected}"
    invalid = re.match(
        r"invalid (?:choice|.* value): (.*?)(?: \(choose from.*)?$|Truthy value expected: got (.*) but", error.message
    )
    value = next(filter(None, invalid.groups()), "''").strip("'\"") if invalid else error.message
    if entry and (choices := choices_of(entry)):
        return f"{option}: {value!r} is not a valid value{suggest(value, choices)}"
    return f"{option}: {expected}, got {value!r}"
