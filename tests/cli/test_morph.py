"""The command itself: what is not a sub-command, and names that are none."""

from __future__ import annotations

import subprocess
import sys

import pytest

from morphing_trainer import __version__
from morphing_trainer.cli import morph


def test_a_command_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert morph.main(["descibe"]) == 2
    assert capsys.readouterr().err == "error: morph: no such command 'descibe'; did you mean 'describe'?\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert morph.main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in morph.COMMANDS)


def test_the_version_is_told_at_once() -> None:
    code = (
        "import sys\nfrom morphing_trainer.cli import morph\n"
        "assert morph.main(['--version']) == 0\n"
        "assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"morph {__version__}\n"), done.stderr


@pytest.mark.parametrize("command", ["describe", "sample", "plot"])
def test_a_name_that_is_too_long_for_a_path(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert morph.main([command, "x" * 5000]) == 2
    told = capsys.readouterr().err
    assert told == f"error: morph {command}: {'x' * 40}... is too long for a path; give a shorter one\n"
