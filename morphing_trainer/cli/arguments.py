"""Arguments of a run: config files give defaults, the command line wins, nothing wrong passes unnoticed.

Both sources become one dictionary of given values, each with its origin, so that an error can name file and line.
The command line is read by `HfArgumentParser` over the four dataclasses; file values are held against the same types.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from morphing_trainer.cli.command_line import read_command_line
from morphing_trainer.cli.config_files import read_file
from morphing_trainer.cli.exclusive import one_way
from morphing_trainer.cli.groups import FIELDS, DataArguments, Given, ModelArguments
from morphing_trainer.cli.values import value_problems
from morphing_trainer.config import MorphingConfig
from morphing_trainer.errors import ConfigError, Problem, listed
from morphing_trainer.lora_arguments import LoraArguments


class Arguments(NamedTuple):
    """Everything a run is told."""

    model: ModelArguments
    data: DataArguments
    lora: LoraArguments
    training: MorphingConfig


def parse(argv: Sequence[str], prog: str = "train.py") -> Arguments:
    """Read `--config` files and the other arguments in `argv` (without the program's name).

    A later file wins over an earlier one, the command line over all; `null` in a file means "not given". Paths are
    relative to the current folder. `output_dir` defaults to `runs/<stem of the last config file>`, else `runs/run`;
    `resume_from_checkpoint` is `"true"`, `"auto"`, a path or None.

    Raises:
        ConfigError: unknown names, wrong types and values, settings that exclude each other; one line per problem.
        DocumentError: a config file cannot be read.
        SystemExit: with code 0 after `--help`.
    """
    from_command_line, files = read_command_line(argv, prog)
    given: dict[str, Given] = {}
    problems: list[Problem] = []
    for rank, path in enumerate(files):
        from_file, found = read_file(path, rank)
        given |= from_file
        problems += found
    given |= {name: Given(value, "command line", len(files)) for name, value in from_command_line.items()}
    problems += value_problems(given)
    given, clashes = one_way(given)
    problems += clashes
    if problems:
        raise ConfigError(listed(problems))
    values = {name: item.value for name, item in given.items()}
    if values.get("output_dir") is None:
        values["output_dir"] = f"runs/{Path(files[-1]).stem if files else 'run'}"
    try:
        return Arguments(*(cls(**{n: values[n] for n in fields if n in values}) for cls, fields in FIELDS.items()))
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:  # from TrainingArguments and our config
        raise ConfigError(f"{_origin(str(error), given)}: {error}") from error


def _origin(message: str, given: Mapping[str, Given]) -> str:
    """Where the arguments that an error of `MorphingConfig` is about were given."""
    lead = message.partition(":")[0]
    named = [lead] if lead in given else [name for name in given if re.search(rf"\b{name}\b", message)]
    return ", ".join(dict.fromkeys(given[name].where for name in named)) or "training arguments"


__all__ = ["Arguments", "DataArguments", "LoraArguments", "ModelArguments", "parse"]
