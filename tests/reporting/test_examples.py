from __future__ import annotations

import io

from rich.console import Console

from morphing_trainer.reporting.examples import Example, example_lines, example_panel

NASTY = Example("Once\nupon \x1b[31ma time\x1b[0m", "there\twas\x07", "  \n\n")


def test_lines_are_plain_and_one_each() -> None:
    assert example_lines(NASTY) == [
        "example, prompt: Once upon a time",
        "example, truth: there was",
        "example, prediction: (white space only)",
    ]
    named = Example("a", "b", "c", "wiki")
    assert example_lines(named)[0] == "example of wiki, prompt: a"


def test_of_a_long_prompt_the_end_is_shown() -> None:
    line = example_lines(Example("start " + "word " * 500 + "end", "b", "c"))[0]
    assert line.startswith("example, prompt: ... ") and line.endswith("word end")
    assert len(line) < 250


def test_panel() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=60, force_terminal=True, color_system=None)
    console.print(example_panel(Example("[bold]Once", "upon " * 30, "\x1b]0;title\x07a time"), 1200))
    text = stream.getvalue()
    lines = text.splitlines()
    assert lines[0].startswith("╭─ example ─") and "step 1,200" in lines[-1]
    assert "prompt      [bold]Once" in text
    assert "a time" in text
    assert "\x1b]" not in text and "\x07" not in text
    assert all(len(line) == 60 for line in lines)
