"""Command lines of the pages: read by the parsers of what they start, and run where that is quick."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from generation.outputs import ROOT
from torch.distributed.run import get_args_parser

from morphing_trainer.cli import morph, train
from morphing_trainer.cli.arguments import parse
from morphing_trainer.plans import load_plan
from morphing_trainer.schedule import Schedule

HERE = ("--use_cpu", "--no_fp16", "--no_bf16", "--report_to", "none")
"""What needs a GPU or a service is read, and then taken back."""

SHORT = ("--eval_steps", "2", "--eval_iters", "1", "--logging_steps", "2", "--save_steps", "3")
SMALL = ("--n_embd", "16", "--n_head", "4", "--n_inner", "32", "--vocab_size", "300", "--block_size", "64")
"""With which a training takes seconds, and fits the run that the workshop has made."""

RESUMED = ("--train_file", "my.txt", "--scaling_schedule_file", "configs/schedules/guarded.yaml")
"""What the workshop's run was told."""

run_trainings = False
"""Whether trainings are run, if need be short and small, and not only read."""

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class CommandError(AssertionError):
    """A command line of a page that would not work."""


class _Parsed(Exception):
    """The parser has taken the arguments; what would be done with them is not."""


def check(words: Sequence[str], *, extra: Sequence[str] | None, only_parse: bool, code: int = 0) -> bool:
    """Check a command; True if it was run, False if it was parsed.

    Args:
        extra: arguments with which to run what else would take too long.

    Raises:
        CommandError: it would not work.
    """
    name, rest = words[0], list(words[1:])
    if name == "morph":
        return _morph(rest, extra, only_parse, code)
    if name == "accelerate":
        if rest[:1] != ["launch"]:
            raise CommandError(f"accelerate {rest[:1]}: not known to this test")
        given = _by(launch_command_parser(), rest[1:])
        if given.config_file is not None:
            load_config_from_file(given.config_file)
        return _script(given.training_script, given.training_script_args, extra)
    if name == "torchrun":
        given = _by(get_args_parser(), rest)
        return _script(given.training_script, given.training_script_args, extra)
    if name in ("python", "python3"):
        return _module(rest[1], rest[2:]) if rest[:1] == ["-m"] else _script(rest[0], rest[1:], extra)
    if name == "make":
        return _make(rest)
    if name == "pytest":
        missing = [word for word in rest if word.startswith("tests/") and not (ROOT / word.partition("::")[0]).exists()]
        if missing:
            raise CommandError(f"pytest: there is no {missing[0]}")
        return False
    raise CommandError(f"{name}: not known to this test; mark the block `not run`, with a reason")


# --- What the commands start ---


def _morph(argv: list[str], extra: Sequence[str] | None, only_parse: bool, code: int) -> bool:
    if argv[:1] == ["train"]:
        return _training(argv[1:], extra)
    if argv[:2] == ["data", "prepare"] and "--dataset_name" in argv:
        only_parse = True
    with pytest.MonkeyPatch.context() as patch:
        if only_parse:
            _stop_after_parsing(patch, argv[0])
        try:
            found = morph.main([*argv, *(extra or ())])
        except _Parsed:
            return False
        except SystemExit as error:  # of argparse
            found = int(error.code or 0)
    if found != code:
        raise CommandError(f"morph {argv[0]} ends with exit code {found}, not {code}")
    return True


def _stop_after_parsing(patch: pytest.MonkeyPatch, command: str) -> None:
    """Let a command go as far as its arguments are read."""

    def stop(*arguments: Any, **options: Any) -> None:
        raise _Parsed

    if command == "data":  # reads what its own parser leaves by that of training
        patch.setattr("morphing_trainer.cli.data.open_data", stop)
        return
    inside = False  # the ways to parse call each other, and the outermost one knows what is wrong

    def stopping(way: Callable[..., Any]) -> Callable[..., Any]:
        def parsed(self: argparse.ArgumentParser, *arguments: Any, **options: Any) -> Any:
            nonlocal inside
            if inside:
                return way(self, *arguments, **options)
            inside = True
            way(self, *arguments, **options)
            raise _Parsed

        return parsed

    for name in ("parse_args", "parse_known_args", "parse_intermixed_args"):
        patch.setattr(argparse.ArgumentParser, name, stopping(getattr(argparse.ArgumentParser, name)))


def _script(script: str, argv: list[str], extra: Sequence[str] | None) -> bool:
    path = Path(script)
    if not path.is_file():
        raise CommandError(f"there is no script {script}")
    text = path.read_text(encoding="utf-8")
    if "morphing_trainer.cli.morph" in text and (argv[:1] != ["train"] or extra is not None):
        return _run(script, [*argv, *(extra or ())])
    if "morphing_trainer.cli.morph" in text:
        return _training(argv[1:], None)
    if "morphing_trainer.cli.train" not in text:
        return _stopped(lambda: runpy.run_path(str(path), run_name="__main__"), path.name, argv)
    if extra is None or script == "train.py":
        return _training(argv, extra)
    return _run(script, [*argv, *extra])


def _run(script: str, argv: list[str]) -> bool:
    with _argv([script, *argv]), pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
    if ended.value.code:
        raise CommandError(f"{script} ends with exit code {ended.value.code}")
    return True


def _training(argv: list[str], extra: Sequence[str] | None) -> bool:
    """Arguments of `train.py`: read, and all that they name as well; or run."""
    if extra is not None:
        with contextlib.redirect_stderr(sys.stdout):
            if (code := train.main([*argv, *extra])) != 0:
                raise CommandError(f"train.py ends with exit code {code}")
        return True
    arguments = parse([*argv, *HERE])
    Schedule.of(arguments.training.scaling_schedule_file)
    if arguments.data.plan is not None:
        load_plan(arguments.data.plan)
    for files in (arguments.data.train_file, arguments.data.validation_file):
        for file in [files] if isinstance(files, str) else files or ():
            if not Path(file).exists():
                raise CommandError(f"there is no file {file}")
    for named in (arguments.model.model_name_or_path, arguments.data.dataset_name, arguments.data.tokenizer_name):
        if named is not None and not Path(named).exists() and not HUB_ID.fullmatch(named):
            raise CommandError(f"{named} is no folder and no id of the Hub")
    data = arguments.data.dataset_name
    if not run_trainings or arguments.training.push_to_hub or (data is not None and not Path(data).exists()):
        return False
    given = [*HERE, *SHORT]
    given += [] if arguments.data.plan is not None else ["--max_steps", "6"]
    given += [] if arguments.model.model_name_or_path is not None else SMALL
    resumes = arguments.training.resume_from_checkpoint is not None
    given += RESUMED if resumes else ("--overwrite_output_dir", "true")
    return _training(argv, given)


def _module(name: str, argv: list[str]) -> bool:
    if name not in ("build", "pip", "venv", "pytest"):
        return _stopped(importlib.import_module(name).main, name, argv)
    raise CommandError(f"python -m {name}: not known to this test; mark the block `not run`, with a reason")


def _stopped(start: Any, name: str, argv: list[str]) -> bool:
    """Run a program as far as its arguments are read."""
    with pytest.MonkeyPatch.context() as patch, _argv([name, *argv]):
        _stop_after_parsing(patch, name)
        try:
            start()
        except _Parsed:
            return False
        except SystemExit as error:
            raise CommandError(f"{name} does not take {argv}: exit code {error.code}") from error
    raise CommandError(f"{name} reads no arguments")


def _make(words: list[str]) -> bool:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, equals, value = word.partition("=")
        known = rf"^{re.escape(name)} \?=" if equals else rf"^{re.escape(name)}:"
        if not re.search(known, text, flags=re.MULTILINE):
            raise CommandError(f"the Makefile knows no {name}")
        if name == "DEMO_ARGS":
            _training(["--config", "configs/demo.yaml", *value.split()], None)
    return False


def _by(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    with _argv(["command"]):
        try:
            return parser.parse_args(argv)
        except SystemExit as error:
            raise CommandError(f"{parser.prog} does not take {argv}: exit code {error.code}") from error


@contextlib.contextmanager
def _argv(words: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before
