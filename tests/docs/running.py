"""Blocks of the pages, run one after the other as a reader would."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any

import yaml
from generation.blocks import Block
from generation.outputs import output
from generation.shell import commands_of, is_shell

from morphing_trainer.cli.checking import checked
from morphing_trainer.documents import load_document
from tests.docs.commands import CommandError, check

PLAIN = ("text", "ini", "toml")
"""Languages of blocks that are only looked at."""

OUT = ("--output", "--out", "--output_dir", "-o")
"""Options that name what a command makes."""


class BlockFault(AssertionError):
    """A block that would not work for a reader; the message says where it stands."""


class Page:
    """A page while its blocks are run. Python blocks share a namespace, files that blocks are saved as stay."""

    def __init__(self, given: dict[str, Any] | None = None) -> None:
        self.names: dict[str, Any] = dict(given or {})
        self.promised: set[str] = set()
        """What commands would have made that were only parsed."""
        self.counts: Counter[str] = Counter()

    def run(self, blocks: Sequence[Block]) -> None:
        """Run all blocks.

        Raises:
            BlockFault: the first that does not work.
        """
        for before, block, after in zip([None, *blocks], blocks, [*blocks[1:], None], strict=False):
            if after is not None and "output" in after.marks:
                continue  # is run when it is known what it has to print
            try:
                self._run(block, before)
            except (Exception, SystemExit) as error:
                raise BlockFault(f"{block.where}: {type(error).__name__}: {error}") from error

    def _run(self, block: Block, before: Block | None) -> None:
        if (name := block.marks.get("saved as")) is not None:
            Path(name).write_text(block.text, encoding="utf-8")
        if "not run" in block.marks:
            assert block.marks["not run"], "say why it is not run"
            self.counts["not run"] += 1
        elif block.language == "python":
            self._python(block)
        elif block.language in ("yaml", "json"):
            self._file(block)
        elif block.language == "sh" or (not block.language and is_shell(block.text)):
            self._shell(block)
        elif "output" in block.marks:
            assert before is not None, "no commands stand before the output"
            printed = "".join(output(list(command.words), Path()) for command in commands_of(before.text))
            assert printed.split("\n") == block.text.split("\n"), "is stale; run: python docs/generate.py"
            self.counts["command, its output compared"] += len(commands_of(before.text))
        else:
            known = block.language in PLAIN or block.language.startswith("{")
            assert known, f"language {block.language!r}: name one that is run, or `text`"
            self.counts["directive" if block.language.startswith("{") else "text"] += 1

    def _python(self, block: Block) -> None:
        text = block.text
        for change in filter(None, block.marks.get("run with", "").split("; ")):
            old, arrow, new = change.partition(" -> ")
            assert arrow and old in text, f"run with: {old!r} is not in the block"
            text = text.replace(old, new)
        # A block that is saved is the module that others import.
        self.names["__name__"] = Path(block.marks.get("saved as", "page.py")).stem
        # Empty lines, so that an error has the page's line.
        exec(compile("\n" * block.line + text, block.page, "exec", dont_inherit=True), self.names)
        self.counts["python"] += 1

    def _file(self, block: Block) -> None:
        """A schedule, a plan or a config: read by what reads it in a run."""
        path = Path(block.marks.get("saved as", f"block.{block.language}"))
        path.write_text(block.text, encoding="utf-8")
        found = checked(str(path))
        assert found.good, "; ".join(str(problem) for problem in found.problems)
        if (other := block.marks.get("same as")) is not None:
            assert load_document(str(path)).data == load_document(other).data, f"is not what {other} says"
            assert yaml.safe_load(block.text) == yaml.safe_load(Path(other).read_text(encoding="utf-8"))
        self.counts[block.language] += 1

    def _shell(self, block: Block) -> None:
        commands = commands_of(block.text)
        assert commands, "holds no command"
        extra = block.marks["run with"].split() if "run with" in block.marks else None
        for command in commands:
            promised = any(self._promised(word) for word in command.words)
            try:
                code = int(block.marks.get("exit code", "0"))
                ran = check(_globbed(command.words), extra=extra, only_parse=promised, code=code)
            except CommandError as error:
                raise CommandError(f"line {block.line + 1 + command.line}: {error}") from error
            self.counts["command, run" if ran else "command, parsed"] += 1
            if not ran:
                pairs = zip(command.words, command.words[1:], strict=False)
                self.promised |= {word for option, word in pairs if option in OUT}

    def _promised(self, word: str) -> bool:
        return any(word == made or word.startswith(f"{made}/") for made in self.promised)


def _globbed(words: Sequence[str]) -> list[str]:
    """Words with patterns of files as a shell hands them on: what matches, or the pattern itself."""
    return [name for word in words for name in (sorted(glob(word)) if "*" in word else []) or [word]]
