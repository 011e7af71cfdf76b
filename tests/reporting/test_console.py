from __future__ import annotations

import io

import pytest

from morphing_trainer.reporting.console import Rate, Status, is_terminal, make_console
from morphing_trainer.reporting.records import Upcoming


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [("TERM", "xterm", True), ("TERM", "dumb", False), ("CI", "true", False), ("CI", "0", True), ("CI", "", True)],
)
def test_what_counts_as_a_terminal(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: bool) -> None:
    monkeypatch.setenv(variable, value)
    assert is_terminal(Terminal()) is expected
    assert is_terminal(io.StringIO()) is False


def test_a_closed_stream_is_no_terminal() -> None:
    stream = io.StringIO()
    stream.close()
    assert is_terminal(stream) is False


def test_force_color_does_not_bring_escape_codes_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    make_console(stream).print("plain", style="bold red")
    assert stream.getvalue() == "plain\n"


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    coloured, plain = Terminal(), Terminal()
    make_console(coloured).print("x", style="red")
    monkeypatch.setenv("NO_COLOR", "1")
    make_console(plain).print("x", style="red")
    assert "\x1b[31m" in coloured.getvalue() and "\x1b[31m" not in plain.getvalue()


def test_brackets_and_colons_are_shown_as_they_are() -> None:
    stream = io.StringIO()
    make_console(stream).print("[0, 1] [red]x[/red] :smile:")
    assert stream.getvalue() == "[0, 1] [red]x[/red] :smile:\n"


def test_rate_counts_the_last_minute_only() -> None:
    rate = Rate()
    rate.add(0, 0.0)
    assert rate.per_second is None
    rate.add(100, 10.0)
    assert rate.per_second == 10
    for second in range(11, 200):
        rate.add(100 + 5 * (second - 10), float(second))
    assert rate.per_second == pytest.approx(5)


def test_rate_of_a_resumed_run_does_not_count_what_came_before() -> None:
    rate = Rate()
    rate.add(1_000_000, 3600.0)
    rate.add(1_000_010, 3601.0)
    assert rate.per_second == pytest.approx(10)


@pytest.mark.parametrize("width", [60, 80, 140])
def test_status_shows_everything_within_the_width(width: int) -> None:
    status = Status(
        step=250,
        total=1000,
        elapsed=100.0,
        steps_per_second=2.5,
        loss=3.98765,
        eval_loss=4.1234,
        learning_rate=2.87e-4,
        tokens_per_second=12_345.0,
        facts={"layers": 4, "hidden": 128, "mlp": 512, "parameters": 1_230_000},
        upcoming=Upcoming("stack_layers", [0, 0, 1], "loss 4.123, fires below 4.0; or 120 of 500 steps waited"),
    )
    console = make_console(io.StringIO())
    console.width = width
    console.print(status)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    flat = " ".join(text.split())
    for part in ("step 250/1,000 25% 0:01:40 < 0:05:00", "loss 3.988", "eval 4.123", "lr 2.87e-4", "tokens/s 12.3k"):
        assert part in flat, part
    for part in ("parameters 1.23M", "4 x 128, mlp 512", "stack_layers [0, 0, 1]", "500 steps waited"):
        assert part in flat, part


def test_status_of_a_run_that_knows_nothing_yet() -> None:
    console = make_console(io.StringIO())
    console.print(Status())
    assert isinstance(console.file, io.StringIO)
    assert "None" not in console.file.getvalue()
