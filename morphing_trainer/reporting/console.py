"""The terminal: when to draw on it, how numbers are written, and the lines at its foot while a model trains."""

from __future__ import annotations

import math
import os
import re
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from morphing_trainer.reporting.adapters import adapters_text
from morphing_trainer.reporting.records import Upcoming

_LONGEST_VALUE = 60
_WINDOW_SECONDS = 60.0
_UNPRINTABLE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x1f\x7f-\x9f]+")
_GAP = "   "
_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def is_terminal(stream: IO[str] | None = None) -> bool:
    """Whether `stream` (default: standard output) is a terminal on which lines may be redrawn.

    Pipes, files, notebooks, `TERM=dumb` and continuous integration (`CI` set) are not. `FORCE_COLOR`, which many of
    them set, does not count: it asks for colour, and a redrawn bar in a log file is unreadable.
    """
    stream = sys.stdout if stream is None else stream
    if os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return False
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        return False
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # a closed stream, or an object that only knows `write`
        return False


def make_console(stream: IO[str] | None = None) -> Console:
    """A console that shows text as it is: no markup (`[0, 1]` is a list), no emoji codes, no guessed highlighting.

    Off a terminal it writes no escape codes. `NO_COLOR` is honoured.
    """
    return Console(
        file=stream, force_terminal=is_terminal(stream), force_jupyter=False, markup=False, emoji=False, highlight=False
    )


def clean(text: object) -> str:
    """`text` on one line, without escape codes and control characters (descriptions come from files)."""
    return " ".join(_UNPRINTABLE.sub(" ", str(text)).split())


def count(number: float) -> str:
    """Three digits and a unit: 999, 1.23k, 456k, 1.23M, 7.00B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= 0.9995 * size:
            return f"{number / size:#.3g}".rstrip(".") + unit
    return f"{number:.3g}" if isinstance(number, float) else str(number)


def scaled_text(x: float) -> str:
    """Three digits and the prefix of a unit: `3.10 G`."""
    power = 0
    while abs(x) >= 999.5 and power < len(_PREFIXES) - 1:
        x, power = x / 1000, power + 1
    return f"{x:#.3g}".rstrip(".") + f" {_PREFIXES[power]}"


def loss_text(loss: float | None) -> str:
    """Four digits; `NaN`, `inf` and `-` (unknown) spelled out."""
    if loss is None:
        return "-"
    return f"{loss:#.4g}" if math.isfinite(loss) else "NaN" if math.isnan(loss) else str(loss)


def rate_text(rate: float | None) -> str:
    """A learning rate as people write it: 3e-4, 2.5e-5, 0.5."""
    if rate is None:
        return "-"
    if not 0 < abs(rate) < 0.1:
        return f"{rate:.3g}"
    mantissa, exponent = f"{rate:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def duration(seconds: float) -> str:
    """12 ms, 1.23 s, 12.3 s, 4 min 10 s, 2 h 05 min."""
    if seconds < 0.0995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 99.95:
        return f"{seconds:#.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def clock(seconds: float) -> str:
    """h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def operation_text(operation: str, value: Any) -> str:
    """Name and value: `stack_layers 2`, `stack_layers [0, 0, 1, 1]`, `reset_lr_schedule`. Long values are cut short."""
    text = _value_text(value)
    return f"{operation} {text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + '...'}".strip()


def _value_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and math.isfinite(value):
        return rate_text(value) if 0 < abs(value) < 0.01 else f"{value:.6g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{clean(key)}: {_value_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_value_text(item) for item in value) + "]"
    return clean(value)


def shape_text(facts: Mapping[str, Any]) -> str:
    """`layers x hidden, mlp width, LoRA rank 8 on 24 modules`, as far as `facts` names them."""
    adapters = adapters_text(facts)
    return ", ".join(part for part in (size_text(facts), f"LoRA {adapters}" if adapters else "") if part)


def size_text(facts: Mapping[str, Any]) -> str:
    """`layers x hidden, mlp width`, as far as `facts` names them."""
    size = " x ".join(str(facts[key]) for key in ("layers", "hidden") if facts.get(key) is not None)
    return ", ".join(part for part in (size, f"mlp {facts['mlp']}" if facts.get("mlp") is not None else "") if part)


class Rate:
    """Growth per second of a counter, over the last minute."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque()

    def add(self, amount: float, seconds: float) -> None:
        """Take note that the counter stands at `amount` at time `seconds`."""
        self._samples.append((seconds, amount))
        while len(self._samples) > 2 and seconds - self._samples[1][0] > _WINDOW_SECONDS:
            self._samples.popleft()

    @property
    def per_second(self) -> float | None:
        """`None` until the counter has grown over a measurable time."""
        if len(self._samples) < 2:
            return None
        (start, low), (end, high) = self._samples[0], self._samples[-1]
        return (high - low) / (end - start) if end > start and high > low else None


@dataclass
class Status:
    """What the live lines show. The display writes the fields; rendering only reads them."""

    step: int = 0
    total: int = 0
    elapsed: float = 0.0
    steps_per_second: float | None = None
    loss: float | None = None
    eval_loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    memory: Sequence[tuple[str, str]] = ()
    upcoming: Upcoming | None = None
    activity: str = ""

    def values(self) -> list[tuple[str, str]]:
        """The figures known so far, as (label, text)."""
        shown = []
        if self.loss is not None:
            shown.append(("loss", loss_text(self.loss)))
        if self.eval_loss is not None:
            shown.append(("eval", loss_text(self.eval_loss)))
        if self.learning_rate is not None:
            shown.append(("lr", rate_text(self.learning_rate)))
        if self.tokens_per_second is not None:
            shown.append(("tokens/s", count(self.tokens_per_second)))
        shown += self.memory
        if "parameters" in self.facts:
            shown.append(("parameters", count(self.facts["parameters"])))
        if size := size_text(self.facts):
            shown.append(("depth x width", size))
        if adapters := adapters_text(self.facts):
            shown.append(("LoRA", adapters))
        return shown

    def timing(self) -> str:
        """Elapsed time, and the time left at the speed of the last minute."""
        if not self.steps_per_second or not self.total:
            return clock(self.elapsed)
        left = max(0, self.total - self.step) / self.steps_per_second
        return f"{clock(self.elapsed)} < {clock(left)}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._bar()
        yield from _flow(self.values(), options.max_width)
        if self.activity:
            yield Text(self.activity, style="cyan", no_wrap=True, overflow="ellipsis")
        elif self.upcoming is not None:
            yield _labelled(
                "next",
                Text.assemble(
                    (operation_text(self.upcoming.operation, self.upcoming.value), "bold cyan"),
                    f"  {clean(self.upcoming.progress)}",
                ),
            )

    def _bar(self) -> Table:
        grid = Table.grid(expand=True, padding=(0, 1))
        grid.add_column(ratio=1)
        for _ in range(3):
            grid.add_column(no_wrap=True, justify="right")
        bar = ProgressBar(total=max(1, self.total), completed=min(self.step, max(1, self.total)))
        percent = f"{100 * self.step // self.total}%" if self.total else ""
        grid.add_row(bar, f"step {self.step:,}/{self.total:,}", Text(percent, style="bold"), self.timing())
        return grid


def _labelled(label: str, text: Text) -> Table:
    """`text` with a label in front; further lines are indented by the label's width."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    grid.add_row(label, text)
    return grid


def _flow(pairs: list[tuple[str, str]], width: int) -> list[Text]:
    """Labelled values set into as few lines of `width` characters as they need; a pair is never broken."""
    lines: list[Text] = []
    for label, value in pairs:
        piece = Text.assemble((f"{label} ", "dim"), (value, "bold"))
        if lines and len(lines[-1]) + len(_GAP) + len(piece) <= width:
            lines[-1].append(_GAP).append_text(piece)
        else:
            lines.append(piece)
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return lines
