"""Where a command may write a picture."""

from __future__ import annotations

from pathlib import Path

from morphing_trainer.errors import ConfigError
from morphing_trainer.reporting.canvas import is_ours

FORMATS = ("png", "svg")


def check_picture(path: Path, overwrite: bool, command: str = "morph plot") -> None:
    """Refuse to write over what is no picture of ours.

    Raises:
        ConfigError: naming the file.
    """
    if path.is_dir():
        raise ConfigError(f"--output: {path} is a folder; give the name of a file, or a folder that ends with '/'.")
    if path.exists() and not overwrite and not is_ours(path):
        raise ConfigError(
            f"--output: {path} exists and is no picture that {command} has drawn; choose another name, or replace "
            "it by --overwrite."
        )
