"""Options and commands that pages name within their text are there."""

from __future__ import annotations

import re

import pytest
from generation.blocks import pages_of
from generation.outputs import ROOT

from morphing_trainer.cli.groups import ALL
from morphing_trainer.cli.morph import COMMANDS

PAGES = pages_of(ROOT)
OTHERS = {"use_cpu", "config", "help", "nproc_per_node", "num_processes", "shutdown-timeout", "any_argument", "name"}
"""Options of launchers, and of all commands."""


def known_options() -> set[str]:
    """Of runs, and of the commands as their help tells."""
    helps = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    return {*ALL, *(f"no_{name}" for name in ALL), *OTHERS, *re.findall(r"--([\w-]+)", helps)}


def faults_of(text: str) -> list[str]:
    """What stands in code within the text, and is not known."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    known, found = known_options(), []
    for code in re.findall(r"`([^`\n]+)`", text):
        if "/" in code.split()[0] or code.startswith(("pytest", "python", "TORCH", "torchrun", "accelerate")):
            continue
        found += [f"--{name}" for name in re.findall(r"(?<!\S)--([a-zA-Z][\w-]*)", code) if name not in known]
        command = re.match(r"morph ([a-z]+)", code)
        found += [command[0]] if command and command[1] not in COMMANDS else []
    return found


@pytest.mark.parametrize("page", PAGES)
def test_what_is_named_is_there(page: str) -> None:
    assert not faults_of((ROOT / page).read_text(encoding="utf-8"))


def test_what_is_not_there_is_found() -> None:
    text = "Give `--learning_rat 3`, `--bf16`, `--at-loss`; `morph look runs/a` or `morph status`.\n```sh\n--x\n```"
    assert faults_of(text) == ["--learning_rat", "morph look"]
