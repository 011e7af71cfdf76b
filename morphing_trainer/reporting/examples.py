"""One example of an evaluation: what the model was given, what follows in truth, and what it wrote."""

from __future__ import annotations

from dataclasses import dataclass

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from morphing_trainer.reporting.console import clean

_LONGEST_PROMPT = 200
_WIDTH = 88  # as the banners of operations


@dataclass(frozen=True)
class Example:
    """Texts as they were decoded. `name` is the evaluation set's, empty where there is only one."""

    prompt: str
    truth: str
    prediction: str
    name: str = ""

    def rows(self) -> list[tuple[str, str]]:
        """(label, text on one line); of a long prompt the end."""
        prompt = clean(self.prompt)
        if len(prompt) > _LONGEST_PROMPT:
            prompt = f"... {prompt[-_LONGEST_PROMPT:].lstrip()}"
        shown = [("prompt", prompt), ("truth", clean(self.truth)), ("prediction", clean(self.prediction))]
        return [(label, text or "(white space only)") for label, text in shown]


def example_lines(example: Example) -> list[str]:
    """`example prompt: ...`, `example truth: ...`, `example prediction: ...`."""
    name = f" of {clean(example.name)}" if example.name else ""
    return [f"example{name}, {label}: {text}" for label, text in example.rows()]


def example_panel(example: Example, step: int) -> Panel:
    """The same as a panel, three rows under each other."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in example.rows():
        grid.add_row(label, Text(text, style="bold" if label == "prediction" else ""))
    return Panel(
        grid,
        title=Text(f"example{f' of {clean(example.name)}' if example.name else ''}"),
        title_align="left",
        subtitle=Text(f"step {step:,}", style="dim"),
        subtitle_align="right",
        border_style="dim",
        width=_WIDTH,
    )
