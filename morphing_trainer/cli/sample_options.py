"""The options of `morph sample`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from morphing_trainer.errors import ConfigError, Problem, listed, suggest


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"morph sample: {message}; --help lists all options")


def _parser() -> _Parser:
    parser = _Parser(
        prog="morph sample",
        description="Let a model continue a text. It goes to standard output as it comes, remarks to standard error.\n"
        "The same seed gives the same text. A model reads a limited number of tokens (its n_positions): of a longer\n"
        "prompt only the end counts, and when all positions are taken the model writes on from the newer half.",
        epilog="examples:\n"
        "  morph sample runs/demo --prompt 'A list is'\n"
        "  morph sample runs/demo/checkpoint-200 --prompt FILE:start.txt --num_samples 3 --temperature 0.7 --top_k 50\n"
        "  echo 'A list is' | morph sample openai-community/gpt2 --prompt - --seed 1 --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run, a checkpoint, a folder with a model, or a Hub id")
    add(
        "--prompt",
        metavar="TEXT",
        default="",
        help="text, FILE:path, or - for standard input; a last line end is left "
        "out. Default: none, the model begins a new text",
    )
    add("--num_samples", type=int, default=1, metavar="N", help="texts to write, one after the other (default: 1)")
    add(
        "--max_new_tokens",
        type=int,
        default=200,
        metavar="N",
        help="tokens of a text at most (default: 200); it may end earlier, with end-of-text",
    )
    add(
        "--temperature",
        type=float,
        default=0.8,
        help="0 takes the likeliest token, 1 draws as the model says, higher is wilder (default: 0.8)",
    )
    add("--top_k", type=int, metavar="K", help="draw from the K likeliest tokens only (default: from all)")
    add("--top_p", type=float, metavar="P", help="draw from the likeliest tokens that together have probability P only")
    add("--seed", type=int, help="of the first text; the next ones have the numbers that follow (default: a new one)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: auto, a GPU if there is one)")
    add("--tokenizer", metavar="NAME", help="folder or Hub id (default: the one saved with the model)")
    add("--json", action="store_true", help="one JSON object per text and line, when it is complete")
    return parser


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """The options in `argv`.

    Raises:
        ConfigError: for unknown ones and bad values; one line per problem.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(list(argv))
    if rest:
        known = [name for action in parser._actions for name in action.option_strings]
        what = f"no such option{suggest(rest[0], known)}" if rest[0].startswith("-") else "is one argument too many"
        raise ConfigError(f"morph sample: {rest[0]}: {what}")
    problems = [Problem(f"--{name}", what) for name, what in _faults(options)]
    if problems:
        raise ConfigError(listed(problems))
    return options


def _faults(options: argparse.Namespace) -> list[tuple[str, str]]:
    faults = [
        (name, f"must be at least 1, is {value}")
        for name in ("num_samples", "max_new_tokens", "top_k")
        if (value := getattr(options, name)) is not None and value < 1
    ]
    if not (math.isfinite(options.temperature) and options.temperature >= 0):
        faults.append(("temperature", f"must be a number from 0, is {options.temperature}"))
    if options.top_p is not None and not 0 < options.top_p <= 1:
        faults.append(("top_p", f"must be above 0 and at most 1, is {options.top_p}"))
    if options.seed is not None and not 0 <= options.seed < 2**63:
        faults.append(("seed", f"must be from 0 to 2**63 - 1, is {options.seed}"))
    if options.temperature == 0:  # what would silently do nothing
        drawn = [name for name in ("top_k", "top_p", "seed") if getattr(options, name) is not None]
        faults += [(name, "has no effect at temperature 0, where nothing is drawn; remove it") for name in drawn]
        if options.num_samples > 1:
            faults.append(("num_samples", "at temperature 0 all texts are the same; raise the temperature"))
    return faults


def read_prompt(given: str) -> str:
    """The text that `given` means: itself, `FILE:path`, or `-` for standard input.

    Raises:
        ConfigError: if it cannot be read.
    """
    if given != "-" and not given.startswith("FILE:"):
        return given
    where = "standard input" if given == "-" else given.removeprefix("FILE:")
    try:
        data = sys.stdin.buffer.read() if given == "-" else Path(where).expanduser().read_bytes()
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise ConfigError(f"--prompt: {where} cannot be read: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prompt: {where} is not UTF-8 text (byte {error.start}); convert it") from error
