"""Code blocks of Markdown pages, and the marks before them.

A mark is a comment right before a block, which readers of the page do not see:

    <!-- saved as: my_schedule.yaml -->   the block is a file that later commands may name
    <!-- same as: configs/... -->         the block says what that file says, comments aside
    <!-- run with: --max_steps 3 -->      commands: run, with these arguments added; Python: replace `old -> new; ...`
    <!-- not run: why -->                 nothing is done with it
    <!-- exit code: 1 -->                 what the command ends with, if not with 0
    <!-- output -->                       what the commands of the block before print, kept fresh by docs/generate.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MARKS = ("saved as", "same as", "run with", "not run", "exit code", "output")

FILLED = ("table", "growth")
"""Comments that are no marks: between them and an end, benchmarks.tables and benchmarks.growth.page write."""

_FENCE = re.compile(r"^( *)(`{3,})([^`]*)$")
_MARK = re.compile(r"^<!-- ([a-z ]+?)(?:: (.*?))? -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: path of the page from the root of the repository.
        line: of its first fence, from 1.
        language: the word behind the fence; `{...}` is a directive of the site.
        text: what is between the fences.
        marks: those right before it.
    """

    page: str
    line: int
    language: str
    text: str
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def last(self) -> int:
        """Line of its closing fence, from 1."""
        return self.line + self.text.count("\n") + 1


class BlockError(ValueError):
    """A page's blocks or marks are not well formed."""


def blocks_of(page: str, text: str) -> list[Block]:
    """All blocks of a page.

    Raises:
        BlockError: a fence is not closed, or a mark is unknown or stands before no block.
    """
    return list(_blocks(page, text.splitlines()))


def read_blocks(root: Path, page: str) -> list[Block]:
    return blocks_of(page, (root / page).read_text(encoding="utf-8"))


def _blocks(page: str, lines: list[str]) -> Iterator[Block]:
    marks: dict[str, str] = {}
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if found := _FENCE.match(line):
            indent, ticks, language = found.groups()
            start, body = number, []
            while number < len(lines) and lines[number].strip() != ticks:
                body.append(lines[number].removeprefix(indent))
                number += 1
            if number == len(lines):
                raise BlockError(f"{page}:{start}: the block is not closed")
            number += 1
            yield Block(page, start, language.strip(), "".join(f"{each}\n" for each in body), marks)
            marks = {}
        elif (mark := _MARK.match(line.strip())) and (
            mark[1] in MARKS or (mark[2] is not None and mark[1] not in FILLED)
        ):
            if mark[1] not in MARKS:
                raise BlockError(f"{page}:{number}: {mark[1]!r} is no mark; there are {', '.join(MARKS)}")
            marks = {**marks, mark[1]: mark[2] or ""}
        elif line.strip() and marks:
            raise BlockError(f"{page}:{number}: a mark ({', '.join(marks)}) stands before no block")
    if marks:
        raise BlockError(f"{page}: a mark ({', '.join(marks)}) stands before no block")


def pages_of(root: Path) -> list[str]:
    """The README and all pages of the documentation, from the root of the repository."""
    found = (root / "docs").rglob("*.md")
    pages = (path.relative_to(root) for path in found if "_build" not in path.parts)
    return ["README.md", *sorted(str(path) for path in pages)]
