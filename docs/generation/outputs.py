"""What commands print, where a page shows it: a block marked `output` behind a block of commands."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

from generation.blocks import Block, pages_of, read_blocks
from generation.shell import commands_of
from morphing_trainer.cli import morph

ROOT = Path(__file__).parent.parent.parent
WIDTH = 120
"""Columns of the terminal that commands are told of."""

ROOM = 104
"""Columns that a page has room for."""


def refresh() -> list[str]:
    """Write the outputs of all pages anew; the pages that have changed."""
    changed = []
    for page in pages_of(ROOT):
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        new = refreshed(page)
        if new != text:
            path.write_text(new, encoding="utf-8")
            changed.append(page)
    return changed


def refreshed(page: str) -> str:
    """The page with fresh outputs."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder))
        for block, printed in reversed(list(_printed(page, Path(folder)))):
            lines[block.line : block.last - 1] = printed.rstrip("\n").splitlines()
    return "\n".join(lines) + "\n"


def _printed(page: str, folder: Path) -> Iterator[tuple[Block, str]]:
    """Blocks of output, and what the commands before them print in `folder`."""
    blocks = read_blocks(ROOT, page)
    for before, block in zip([None, *blocks], blocks, strict=False):
        if "saved as" in block.marks:
            (folder / block.marks["saved as"]).write_text(block.text, encoding="utf-8")
        if "output" in block.marks:
            assert before is not None and before.language == "sh", f"{block.where}: no commands before it"
            yield block, "".join(output(list(command.words), folder) for command in commands_of(before.text))


def output(words: list[str], folder: Path) -> str:
    """What a `morph` command prints, run in `folder`."""
    assert words[0] == "morph", words
    printed = io.StringIO()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(WIDTH)
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
            code = morph.main(words[1:])
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    assert code == 0, f"{words} ends with exit code {code}"
    return "".join(_folded(line) for line in printed.getvalue().splitlines())


def _folded(line: str) -> str:
    """A line that a page has room for: a long sentence goes on in the next one, a row of a table stays."""
    is_row = "  " in line.strip()
    return (line if is_row else textwrap.fill(line, ROOM, subsequent_indent="  ")) + "\n"


def fill(folder: Path) -> None:
    """Put into `folder` what the commands of the pages name: links to the files of the repository."""
    for name in ("configs", "accelerate_configs", "examples", "benchmarks", "docs", "tests", "README.md", "train.py"):
        (folder / name).symlink_to(ROOT / name)
