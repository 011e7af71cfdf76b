"""`docs/reliability.md`: every command in it finds tests, and every path in it is there."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"`((?:pytest|python -m) [^`]+)`", TEXT)))

LONG = re.compile(r"mark\.long|HALVES")
"""Marks a test that takes long; `HALVES` of `tests.trainer.common` marks the second half of its cases so."""


def options(command: str) -> tuple[list[str], str | None, str | None]:
    """What is to be collected, and the `-m` and `-k` of a pytest command."""
    words = iter(shlex.split(command)[1:])
    paths: list[str] = []
    marker = named = None
    for word in words:
        if word == "-m":
            marker = next(words)
        elif word == "-k":
            named = next(words)
        else:
            paths.append(word)
    return paths, marker, named


def functions(path: Path) -> dict[str, bool]:
    """The tests of a file, and whether all they do takes long."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            found[node.name] = any("mark.long" in ast.unparse(each) for each in node.decorator_list)
    return found


def test_there_are_commands_for_ci_and_long_ones() -> None:
    assert len([command for command in COMMANDS if "-m long" in command]) > 5
    assert len([command for command in COMMANDS if command.startswith("pytest ") and "-m" not in command]) > 5


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_finds_something(command: str) -> None:
    if command.startswith("python -m "):
        module = command.split()[2].replace(".", "/")
        assert (ROOT / f"{module}.py").is_file() or (ROOT / module / "__init__.py").is_file()
        return
    paths, marker, named = options(command)
    assert paths
    assert marker in (None, "long", "gpu")
    for each in paths:
        file, *name = each.split("::")
        files = sorted((ROOT / file).rglob("test_*.py")) if (ROOT / file).is_dir() else [ROOT / file]
        tests = {test: long for path in files for test, long in functions(path).items()}
        chosen = [test for test in tests if (not name or test == name[0]) and (named is None or named in test)]
        assert chosen, f"{each}: no such test"
        if marker is None:
            assert not all(tests[test] for test in chosen), f"{each}: takes long, and -m long is not said"
        elif marker == "long" and len(files) == 1:
            assert LONG.search(files[0].read_text(encoding="utf-8")), f"{each}: nothing takes long there"


@pytest.mark.long
@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("pytest ")])
def test_pytest_collects_something(command: str) -> None:
    found = subprocess.run(
        [sys.executable, "-m", *shlex.split(command), "--collect-only"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout[-2000:]
