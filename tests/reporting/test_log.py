from __future__ import annotations

import io
import logging
import re
import sys
from pathlib import Path

import pytest

from morphing_trainer.errors import ConfigError
from morphing_trainer.reporting.console import make_console
from morphing_trainer.reporting.log import (
    LOGGER,
    attach_console,
    close_run_log,
    console_logging,
    detach_console,
    open_run_log,
    write_line,
)


def lines(folder: Path) -> list[str]:
    return (folder / "logs" / "train.log").read_text(encoding="utf-8").splitlines()


def test_lines_carry_time_and_level(tmp_path: Path) -> None:
    open_run_log(tmp_path)
    logging.getLogger("morphing_trainer.engine").info("one\ntwo")
    logging.getLogger("morphing_trainer").warning("three")
    close_run_log()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d "
    written = lines(tmp_path)
    assert [re.sub(stamp, "", line) for line in written] == ["INFO one", "INFO two", "WARNING three"]
    assert all(re.match(stamp, line) for line in written)


def test_a_second_run_appends_and_the_first_handler_is_gone(tmp_path: Path) -> None:
    first = open_run_log(tmp_path)
    LOGGER.info("first")
    second = open_run_log(tmp_path)
    LOGGER.info("second")
    assert first not in LOGGER.handlers and second in LOGGER.handlers
    close_run_log(first)  # stale: must not close the second
    LOGGER.info("third")
    close_run_log(second)
    LOGGER.info("not written")
    assert [line.split()[-1] for line in lines(tmp_path)] == ["first", "second", "third"]


def test_closing_restores_the_logger_and_may_be_repeated(tmp_path: Path) -> None:
    before = LOGGER.level
    open_run_log(tmp_path)
    assert LOGGER.isEnabledFor(logging.INFO)
    close_run_log()
    close_run_log()
    assert not LOGGER.handlers and LOGGER.level == before


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    handler = open_run_log(tmp_path, main_process=False)
    assert isinstance(handler, logging.NullHandler)
    assert not LOGGER.handlers and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where a folder should be")
    with pytest.raises(ConfigError, match=r"output_dir: cannot write the run log .*choose an output_dir"):
        open_run_log(tmp_path)
    assert not LOGGER.handlers


def test_messages_of_the_library_are_seen_on_the_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_run_log(tmp_path)
    logging.getLogger("morphing_trainer.engine").info("[a] message")
    logging.getLogger("morphing_trainer.engine").warning("trouble")
    close_run_log()
    assert capsys.readouterr().out == "[a] message\nwarning: trouble\n"


def test_a_later_console_takes_over() -> None:
    first, second = io.StringIO(), io.StringIO()
    assert attach_console(make_console(first)) is True
    assert attach_console(make_console(second)) is False
    LOGGER.info("hello")
    detach_console()
    assert (first.getvalue(), second.getvalue()) == ("", "hello\n")


def test_nothing_is_printed_twice_where_the_application_logs_to_the_console(tmp_path: Path) -> None:
    own = logging.StreamHandler(sys.stdout)
    stream = io.StringIO()
    logging.getLogger().addHandler(own)
    try:
        assert console_logging()
        attach_console(make_console(stream))
        LOGGER.info("shown by the application")
        own.setLevel(logging.WARNING)
        assert not console_logging()
        LOGGER.info("shown by us")
    finally:
        logging.getLogger().removeHandler(own)
    assert stream.getvalue() == "shown by us\n"


def test_a_printed_line_goes_to_the_run_log_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = logging.StreamHandler(sys.stdout)
    logging.getLogger().addHandler(own)
    try:
        open_run_log(tmp_path)
        write_line("100% [done] %s", printed=True)
        write_line("once", printed=False)
    finally:
        logging.getLogger().removeHandler(own)
        close_run_log()
    assert [line.split(" INFO ")[1] for line in lines(tmp_path)] == ["100% [done] %s", "once"]
    assert capsys.readouterr().out == "once\n"
