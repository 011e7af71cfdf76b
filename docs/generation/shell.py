"""Command lines of a block, as a shell would read them."""

from __future__ import annotations

import shlex
from typing import NamedTuple

COMMANDS = ("accelerate", "make", "morph", "pip", "pytest", "python", "python3", "tensorboard", "torchrun", ".")
"""Words that a line of a block without a language may begin with to be taken for a command."""


class Command(NamedTuple):
    """One command line.

    Attributes:
        line: inside its block, from 0.
        words: after quoting and comments; the environment's variables before them are left out.
    """

    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)


def commands_of(text: str) -> list[Command]:
    """The commands of a block: lines that go on after a backslash are one; comments and empty lines are none.

    Raises:
        ValueError: quotes are not closed, or a line uses what only a shell could do (pipes, redirection, variables).
    """
    found = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        start, line = number, lines[number]
        while line.endswith("\\") and number + 1 < len(lines):
            number += 1
            line = line[:-1] + lines[number]
        number += 1
        words = shlex.split(line, comments=True)
        while words and "=" in words[0] and words[0].partition("=")[0].isupper():
            words.pop(0)
        if words and (odd := [word for word in words if word in ("|", ">", ">>", "<", "&&", "||", ";", "&")]):
            raise ValueError(f"{line!r}: {odd[0]} is a shell's; write one command a line")
        if words:
            found.append(Command(start, tuple(words)))
    return found


def is_shell(text: str) -> bool:
    """Whether a block without a language holds commands, and nothing else."""
    try:
        commands = commands_of(text)
    except ValueError:
        return False
    return bool(commands) and all(command.words[0] in COMMANDS for command in commands)
