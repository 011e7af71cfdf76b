"""The run log: every line about a run, with its time, in `<output_dir>/logs/train.log`; and the same on the console.

Everything goes through the logger "morphing_trainer", so an application that configures `logging` itself gets it too.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from morphing_trainer.errors import ConfigError
from morphing_trainer.reporting.console import make_console

LOGGER = logging.getLogger("morphing_trainer")
# Lines of the progress display, which prints them itself: the console handler leaves them out.
DISPLAY_LOGGER = logging.getLogger("morphing_trainer.reporting.display")


class _Stamped(logging.Formatter):
    """Local time with its offset, level, message; each line of a message is stamped, so `grep` finds whole lines."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
        return "\n".join(f"{time} {record.levelname} {line}" for line in super().format(record).splitlines() or [""])


class ConsoleHandler(logging.Handler):
    """Prints log messages as plain lines through `console`, above a live display if one is active on it."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == DISPLAY_LOGGER.name or console_logging():
            return
        try:
            prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
            style = "" if record.levelno < logging.WARNING else "yellow"
            self.console.print(Text(prefix + self.format(record), style=style), soft_wrap=True)
        except Exception:
            self.handleError(record)


_run_log: logging.FileHandler | None = None
_console: ConsoleHandler | None = None
_level_before: int | None = None


def open_run_log(output_dir: str | Path, *, main_process: bool = True) -> logging.Handler:
    """Append what the library logs to `<output_dir>/logs/train.log`, and show it on the console, until `close_run_log`.

    A run log that is still open, from a run before in this process, is closed first. Where `main_process` is false
    nothing is opened and the returned handler does nothing.

    Raises:
        ConfigError: the file cannot be written.
    """
    global _run_log
    if not main_process:
        return logging.NullHandler()
    close_run_log()
    path = Path(output_dir) / "logs" / "train.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, mode="a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"output_dir: cannot write the run log {str(path)!r} ({error.strerror or error}); choose an output_dir "
            "that can be written to."
        ) from error
    handler.setFormatter(_Stamped())
    _run_log = handler
    LOGGER.addHandler(handler)
    attach_console()
    return handler


def close_run_log(handler: logging.Handler | None = None) -> None:
    """Close the run log (only if it is `handler`, where one is given). Safe to call twice, or with none open."""
    global _run_log
    if _run_log is None or (handler is not None and handler is not _run_log):
        return
    closing, _run_log = _run_log, None
    LOGGER.removeHandler(closing)
    with suppress(OSError):  # lines that a full disk does not take; what ends the run is told elsewhere
        closing.close()
    detach_console()


def attach_console(console: Console | None = None) -> bool:
    """Show the library's log messages of level INFO and above on `console`. False if they were shown before.

    Live lines stay whole only if everything is printed through their own console, so a later console takes over.
    """
    global _console, _level_before
    if _console is not None:
        _console.console = console or _console.console
        return False
    _console = ConsoleHandler(console or make_console())
    _level_before = LOGGER.level
    if LOGGER.level == logging.NOTSET:
        LOGGER.setLevel(logging.INFO)
    LOGGER.addHandler(_console)
    return True


def detach_console() -> None:
    """Undo `attach_console`. Safe to call twice."""
    global _console, _level_before
    if _console is not None and _level_before is not None:
        LOGGER.removeHandler(_console)
        LOGGER.setLevel(_level_before)
    _console = _level_before = None


def console_logging() -> bool:
    """Whether the application's own logging already prints the library's messages on the console."""
    above = LOGGER.parent if LOGGER.propagate else None
    while above is not None:
        if any(_prints(handler) for handler in above.handlers):
            return True
        above = above.parent if above.propagate else None
    return False


def _prints(handler: logging.Handler) -> bool:
    if handler.level > logging.INFO:
        return False
    if isinstance(handler, RichHandler):
        return True
    stream = handler.stream if isinstance(handler, logging.StreamHandler) else None
    return stream is not None and (
        stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
        or getattr(stream, "name", "") in ("<stdout>", "<stderr>")
    )


def write_line(line: str, level: int = logging.INFO, *, printed: bool) -> None:
    """Log a line of the display. One that the display has `printed` is kept from the application's console logging."""
    if printed and console_logging():
        if _run_log is not None:
            _run_log.handle(DISPLAY_LOGGER.makeRecord(DISPLAY_LOGGER.name, level, "", 0, line, (), None))
    else:
        DISPLAY_LOGGER.log(level, "%s", line)
