"""Tables of figures that are kept, with the command that made them and a mark of the code behind it.

A benchmark builds a `Table` and calls `publish`; with `--keep NAME` it is written to benchmarks/results/NAME.json, from
where `python -m benchmarks.tables` puts it into the docs. Its options are those of its function `parser()`.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

KEPT = Path(__file__).parent / "results"
LIBRARIES = ("torch", "transformers", "accelerate", "peft")


@dataclass(frozen=True)
class Table:
    """Figures as they are shown.

    Attributes:
        columns: their titles.
        rows: their cells, formatted.
        told: one sentence on what was measured, and how.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    told: str

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)

    def cell(self, row: str, column: str) -> str:
        """The figure in a column, of the row that begins with `row`.

        Raises:
            KeyError: if there is no such row or column.
        """
        try:
            cells = next(cells for cells in self.rows if cells[0] == row)
            return cells[list(self.columns).index(column)]
        except (StopIteration, ValueError):
            raise KeyError(f"no cell of row {row!r} and column {column!r}") from None


@dataclass(frozen=True)
class Kept:
    """A table, and where it comes from.

    Attributes:
        command: that makes it again, to be run from the root of the repository.
        made_by: `mark` of the module behind the command, when it was measured.
        device: that it was measured on.
        versions: of the libraries.
        measured: the day, as in 2026-01-31.
    """

    table: Table
    command: str
    made_by: str
    device: str
    versions: dict[str, str]
    measured: str

    @property
    def module(self) -> str:
        """Name of the module that the command runs."""
        words = shlex.split(self.command)
        return words[words.index("-m") + 1]

    @classmethod
    def load(cls, path: Path) -> Kept:
        """Read what `publish` has written.

        Raises:
            ValueError: if it is something else.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**data, "table": Table(**data["table"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: is no kept table ({error}); measure it again, or restore the file") from error


class Options(argparse.ArgumentParser):
    """Tells the default of every option that has one, and takes only numbers above 0, but for seeds."""

    def add_argument(self, *names: Any, **told: Any) -> argparse.Action:
        if told.get("type") in (int, float) and "--seeds" not in names:
            told["type"] = above_0(told["type"])
        if told.get("default") not in (None, "", argparse.SUPPRESS) and told.get("help") != argparse.SUPPRESS:
            told["help"] += " (default: %(default)s)"
        return super().add_argument(*names, **told)


def above_0(kind: type[int] | type[float]) -> Callable[[str], float]:
    """Reads an option's number."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {wanted}, is {text!r}") from None
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"must be above 0, is {text}")
        return value

    return read


def table_name(text: str) -> str:
    """A name to keep a table by, which pages can ask for."""
    if not re.fullmatch(r"[\w-]+", text):
        raise argparse.ArgumentTypeError(f"must be letters, digits, _ and -, is {text!r}")
    return text


def options_of(docstring: str | None) -> argparse.ArgumentParser:
    """A parser for the options of a module, which tells the first line of its docstring."""
    return Options(description=(docstring or "").split("\n", 1)[0])


def add_keep(parser: argparse.ArgumentParser) -> None:
    told = "keep the table as benchmarks/results/NAME.json, in the place of an older one, for the docs"
    parser.add_argument("--keep", metavar="NAME", type=table_name, help=told)


def publish(table: Table, module: str, keep: str | None) -> None:
    """Print a table; keep it, if that is asked for.

    Args:
        module: that measured it, such as "benchmarks.throughput".
        keep: name of the table; None to print only.
    """
    print(f"{table.told}\n\n{table.markdown()}")
    if keep is None:
        return
    kept = Kept(
        table,
        shlex.join(["python", "-m", module, *_measuring(sys.argv[1:])]),
        mark(module),
        device(),
        versions(),
        date.today().isoformat(),
    )
    KEPT.mkdir(exist_ok=True)
    path = KEPT / f"{keep}.json"
    path.write_text(json.dumps(asdict(kept), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\nkept in {path}; python -m benchmarks.tables puts it into the pages that ask for it")


def _measuring(words: Sequence[str]) -> list[str]:
    """The words of a command without `--keep NAME`."""
    return [
        word
        for before, word in zip(["", *words], words, strict=False)
        if "--keep" not in (before, word) and not word.startswith("--keep=")
    ]


def mark(module: str) -> str:
    """Digest of the code of a module and of the benchmarks that it imports, but this file, which measures nothing.

    It is another one if what they do may have changed, the same for comments, docstrings and the help of options.
    """
    digest = hashlib.sha256()
    for _, tree in sorted(_code(module, {}).items()):
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
            if isinstance(node, ast.Call):
                node.keywords = [word for word in node.keywords if word.arg != "help"]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:16]


def _code(module: str, found: dict[str, ast.Module]) -> dict[str, ast.Module]:
    """Name of a module -> its code, for this one and those that it imports of its own package."""
    path = Path(__file__).parent.parent.joinpath(*module.split(".")).with_suffix(".py")
    if module in (*found, __name__) or not path.exists():
        return found
    found[module] = ast.parse(path.read_text(encoding="utf-8"))
    package = module.partition(".")[0]
    for node in ast.walk(found[module]):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == package:
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                _code(name, found)
    return found


def versions() -> dict[str, str]:
    """Of the libraries that figures depend on."""
    return {name: version(name) for name in LIBRARIES}


def device() -> str:
    """What this is measured on: the GPU, or how many cores of a CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} CPU cores, {platform.machine()}"
