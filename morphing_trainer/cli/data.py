"""`morph data prepare`: a ready-to-train folder. `morph data inspect`: samples as text, the loss mask visible."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from datasets.utils.logging import disable_progress_bar
from rich.console import Console
from rich.text import Text as RichText
from transformers import PreTrainedTokenizerBase

from morphing_trainer.cli.arguments import Arguments, parse
from morphing_trainer.data.inspecting import Shown, Summary, shown, summary
from morphing_trainer.data.opening import Data, Text, open_data
from morphing_trainer.data.prepared import check_target, write_prepared
from morphing_trainer.data.request import DataRequest
from morphing_trainer.data.writing import SPLITS, SampleSplits
from morphing_trainer.errors import ConfigError
from morphing_trainer.reporting.console import make_console

_EPILOG = (
    "All arguments of training may follow, and --config files: those that say what data, tokenizer and seed are count "
    "here (see morph train --help)."
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_BARS = " ▁▂▃▄▅▆▇█"
_PLAIN_BARS = "0123456789"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}")


def main(argv: Sequence[str]) -> int:
    """Run `morph data` with these arguments; returns the process's exit code.

    Raises:
        MorphError: bad input; nothing has been written then.
    """
    commands = {"prepare": _prepare, "inspect": _inspect}
    name, *rest = list(argv) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: morph data prepare --output FOLDER [--overwrite] [arguments of training]")
        print("       morph data inspect [FOLDER] [--split SPLIT] [--samples N] [--start N] [--json] [arguments]")
        return 0
    if name not in commands:
        raise ConfigError(f"command line: no such command {name!r}; it is one of {', '.join(commands)}")
    disable_progress_bar()  # of short work; long work shows its own on a terminal
    return commands[name](rest)


def _prepare(argv: Sequence[str]) -> int:
    parser = _Parser("morph data prepare", epilog=_EPILOG, allow_abbrev=False)
    parser.add_argument("--output", required=True, metavar="FOLDER", help="the folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace a prepared folder that is there")
    options, rest = parser.parse_known_args(argv)
    arguments = _arguments(rest, "morph data prepare")
    output = Path(options.output).expanduser()
    check_target(output, options.overwrite)
    request = DataRequest.of(arguments.data, arguments.training.seed)
    data = open_data(request)
    if not isinstance(data, Text):
        raise ConfigError(f"dataset_name {request.dataset_name!r}: is a prepared folder already. Copy it instead.")
    tokenizer = _tokenizer(data, arguments)
    folders = data.folders(tokenizer, arguments.model.n_positions)
    data.samples(tokenizer)  # refuses what has too little text, before anything is written
    prepared = write_prepared(output, folders, tokenizer, request, options.overwrite)
    console = make_console()
    mode = prepared.meta["mode"]
    console.print(
        f"prepared {output}: {mode}, block_size {prepared.block_size}, {len(tokenizer):,} tokens known", soft_wrap=True
    )
    _print_splits(console, prepared.splits)
    console.print(f"train from it, here or anywhere: morph train --dataset_name {output}", soft_wrap=True)
    return 0


def _inspect(argv: Sequence[str]) -> int:
    rest = list(argv)
    folder = [rest.pop(0)] if rest and not rest[0].startswith("-") else []
    parser = _Parser("morph data inspect", epilog=_EPILOG, allow_abbrev=False, usage="%(prog)s [FOLDER] [options]")
    parser.add_argument("--split", choices=SPLITS, default="train", help="of which samples are shown")
    parser.add_argument("--samples", type=int, default=3, metavar="N", help="how many are shown (default: 3)")
    parser.add_argument("--start", type=int, default=0, metavar="N", help="the first one shown (default: 0)")
    parser.add_argument("--json", action="store_true", help="for machines: one JSON object")
    options, rest = parser.parse_known_args(rest)
    for name, least in (("samples", 0), ("start", 0)):
        if getattr(options, name) < least:
            raise ConfigError(f"command line: --{name} must be at least {least}, is {getattr(options, name)}")
    arguments = _arguments([*(["--dataset_name", *folder] if folder else []), *rest], "morph data inspect")
    data = open_data(DataRequest.of(arguments.data, arguments.training.seed))
    tokenizer = _tokenizer(data, arguments)
    splits = data.samples(tokenizer, arguments.model.n_positions)
    chosen = splits.train if options.split == "train" else splits.validation
    indices = range(options.start, min(options.start + options.samples, len(chosen)))
    if options.samples and not indices:
        raise ConfigError(f"command line: --start is {options.start}, but there are {len(chosen)} samples")
    found = [shown(chosen, index, tokenizer) for index in indices]
    if options.json:
        both = zip(SPLITS, (splits.train, splits.validation), strict=True)
        summaries = {name: asdict(summary(samples)) for name, samples in both}
        print(json.dumps({"splits": summaries, "samples": [asdict(sample) for sample in found]}))
        return 0
    console = make_console()
    _print_splits(console, splits)
    for sample in found:
        _print_sample(console, sample)
    return 0


def _arguments(argv: Sequence[str], prog: str) -> Arguments:
    arguments = parse(argv, prog)
    if arguments.data.plan is not None:
        raise ConfigError(
            f"plan {arguments.data.plan!r}: {prog} takes one data set at a time. Leave the plan out, and give the data "
            "arguments of one of its stages."
        )
    return arguments


def _tokenizer(data: Data, arguments: Arguments) -> PreTrainedTokenizerBase:
    named = arguments.data.tokenizer_name or arguments.model.model_name_or_path
    return data.tokenizer(named, arguments.model.vocab_size)


def _print_splits(console: Console, splits: SampleSplits) -> None:
    for name, samples in zip(SPLITS, (splits.train, splits.validation), strict=True):
        about = summary(samples)
        console.print(f"{name:10}  {_in_words(about)}", soft_wrap=True)
        console.print(f"{'':10}  of {samples.counts}", soft_wrap=True)
        if about.shortest < about.longest:
            console.print(f"{'':10}  lengths, 0 to {samples.block_size}: |{bars(about.histogram)}|", soft_wrap=True)


def _in_words(about: Summary) -> str:
    texts = "" if about.texts is None else f" of {about.texts:,} texts"
    lengths = f"{about.shortest}" if about.shortest == about.longest else f"{about.shortest} to {about.longest}"
    return (
        f"{about.samples:,} samples{texts}, {lengths} tokens long (mean {about.mean:.1f}), {about.tokens:,} tokens, "
        f"{about.learnt / about.tokens:.0%} learnt"
    )


def bars(counts: Sequence[int], encoding: str | None = None) -> str:
    """A character for each count, in blocks of eight heights, or in digits where they cannot be printed."""
    known = (encoding or sys.stdout.encoding or "ascii").lower().startswith("utf")
    heights = _BARS if known else _PLAIN_BARS
    highest = max(*counts, 1)
    return "".join(heights[-(-count * (len(heights) - 1) // highest)] for count in counts)


def _print_sample(console: Console, sample: Shown) -> None:
    """On a terminal the prompt is dim; elsewhere each part has its name before its lines."""
    of = "" if sample.text is None else f", {'start of' if sample.starts else 'in'} text {sample.text}"
    sizes = " + ".join(f"{part.tokens} {part.kind}" for part in sample.parts)
    console.print(f"\nsample {sample.index}{of}: {sizes} tokens")
    if console.is_terminal:
        styles = {"prompt": "dim", "truth": "bold"}
        text = RichText.assemble(*((_visible(part.text), styles[part.kind]) for part in sample.parts))
        console.print(text, soft_wrap=True)
        return
    for part in sample.parts:
        for line in _visible(part.text).split("\n"):
            console.print(f"{part.kind:6} | {line}", soft_wrap=True)


def _visible(text: str) -> str:
    """`text` without characters that would steer a terminal: they stand as escapes."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
