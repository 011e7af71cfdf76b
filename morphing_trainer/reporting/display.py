"""The progress display: live lines at the foot of a terminal, or plain log lines where there is none."""

from __future__ import annotations

import atexit
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerState
from transformers import trainer as trainer_module

from morphing_trainer.reporting import log, tables
from morphing_trainer.reporting.console import (
    Rate,
    Status,
    clean,
    count,
    duration,
    is_terminal,
    loss_text,
    make_console,
    operation_text,
    rate_text,
    shape_text,
)
from morphing_trainer.reporting.examples import Example, example_lines, example_panel
from morphing_trainer.reporting.lines import analysis_line, timing_line
from morphing_trainer.reporting.records import Phase, Record, Upcoming
from morphing_trainer.reporting.undone import undone_lines

_REFRESH_SECONDS = 0.25
_DULL_METRICS = ("_runtime", "_samples_per_second", "_steps_per_second", "_model_preparation_time")
_SHOWN_ELSEWHERE = ("eval_", "morph", "total_flos", "tokens", "seconds")  # by others, or by nobody


class RunDisplay(TrainerCallback):
    """Shows a run while it happens, on the main process only. Everything shown also goes to the run log as plain lines.

    Args:
        upcoming: the next operation and how far its trigger is; `None` when there is none.
        tokens, seconds: training tokens and training time so far. Cheap ones: they are read a few times a second.
        facts: `layers`, `hidden`, `mlp`, `parameters`, `lora_rank`, `lora_modules` of the current model. Read at the
            start and after each operation.
        records: all operations applied so far, those before a resume included, for the table at the end. Default: the
            ones this display has seen.
        later: by `Record.index`, the loss of those that were evaluated after more training. Default: as this display
            has seen.
        undone: what the journal tells of the operations that were rolled back.
        left: lines on what of the schedule was not applied, at the end of the run.
        memory: use of memory and processor, as (label, text).
        timing: seconds by part of the work, for the line at the end.
        console: where to draw; default: standard output.
    """

    def __init__(
        self,
        *,
        upcoming: Callable[[], Upcoming | None],
        tokens: Callable[[], int],
        seconds: Callable[[], float],
        facts: Callable[[], Mapping[str, Any]],
        records: Callable[[], Sequence[Record]] | None = None,
        later: Callable[[], Mapping[int, float]] | None = None,
        undone: Callable[[], Sequence[Mapping[str, Any]]] = lambda: (),
        left: Callable[[], Sequence[str]] = lambda: (),
        memory: Callable[[], Sequence[tuple[str, str]]] = lambda: (),
        timing: Callable[[], Mapping[str, float]] = dict,
        console: Console | None = None,
    ) -> None:
        self._upcoming, self._tokens, self._seconds, self._facts = upcoming, tokens, seconds, facts
        self._memory, self._timing, self._undone, self._left = memory, timing, undone, left
        self._seen: list[Record] = []
        self._records = records or (lambda: self._seen)
        self._after: dict[int, float] = {}  # by record index: loss at the next evaluation
        self._later = later or (lambda: self._after)
        self._waiting: list[int] = []  # indices of records without a loss after them
        self.console = console or make_console()
        self._live: Live | None = None
        self._owns_console_log = False
        self._reset()

    def install(self, trainer: Trainer) -> None:
        """Take the place of the progress bar or printer that `trainer` came with."""
        for callback in (ProgressCallback, PrinterCallback, trainer_module.DEFAULT_PROGRESS_CALLBACK):
            trainer.remove_callback(callback)
        trainer.add_callback(self)

    def close(self) -> None:
        """Give the terminal back. Safe to call twice, and after Ctrl+C or an exception."""
        live, self._live = self._live, None
        atexit.unregister(self.close)
        if live is not None:
            self._status.activity, self._status.upcoming = "", None
            live.stop()
        if self._owns_console_log:
            self._owns_console_log = False
            log.detach_console()

    # Events -----------------------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self.close()
        self._reset()
        self._first_step = state.global_step
        self._owns_console_log = log.attach_console(self.console)
        self._status.facts = dict(self._facts())
        self._sample(state)
        atexit.register(self.close)  # a hidden cursor outlives the process
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=lambda: self._status,
                console=self.console,
                auto_refresh=False,
                redirect_stderr=is_terminal(sys.stderr),  # errors sent to a file stay there
            )
            self._live.start(refresh=True)
        facts = ", ".join(part for part in (shape_text(self._status.facts), self._parameters()) if part)
        self._say(
            f"Training from step {state.global_step:,} to {state.max_steps:,}{': ' if facts else ''}{facts}", bar=True
        )

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._refresh(state)

    def on_prediction_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self._live is not None:
            self._batches += 1
            self._status.activity = f"evaluating, batch {self._batches:,}"
            self._refresh(state)

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        numbers = {key: value for key, value in _numbers(logs).items() if not key.startswith(_SHOWN_ELSEWHERE)}
        if "train_runtime" in numbers:
            self._say(_finished(numbers, state, self._first_step))
        elif "loss" in numbers:
            self._on_train_loss(numbers, state)
        elif analysis := analysis_line(numbers):
            self._say(f"{self._at(state)}{analysis}")
        elif others := [f"{key} {value:.4g}" for key, value in numbers.items() if key not in ("epoch", "step")]:
            self._say(f"{self._at(state)}{', '.join(others)}")

    def on_evaluate(
        self, args: Any, state: TrainerState, control: Any, metrics: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        self._batches, self._status.activity = 0, ""
        numbers = {key: value for key, value in _numbers(metrics).items() if key.startswith("eval_")}
        if (loss := numbers.get("eval_loss")) is not None:
            self._status.eval_loss = loss
            self._after.update(dict.fromkeys(self._waiting, loss))
            self._waiting.clear()
        took = f" ({duration(numbers['eval_runtime'])})" if "eval_runtime" in numbers else ""
        numbers = {key[5:].replace("_", " "): v for key, v in numbers.items() if not key.endswith(_DULL_METRICS)}
        if numbers:
            line = ", ".join(f"{name} {loss_text(value)}" for name, value in numbers.items())
            self._say(f"{self._at(state)}evaluation {line}{took}{'' if self.console.is_terminal else self._next()}")
        for name, value in numbers.items():
            if name.endswith("loss") and not math.isfinite(value):
                self._say(
                    f"{self._at(state)}the evaluation {name} is {loss_text(value)}: the model has diverged. No loss "
                    "trigger fires on it. Lower the learning rate, or resume from an earlier checkpoint.",
                    level=logging.WARNING,
                )
        self._refresh(state, now=True)

    def on_plan(
        self, args: Any, state: TrainerState, control: Any, phases: Sequence[Phase] = (), **kwargs: Any
    ) -> None:
        """The schedule, played through before the first step."""
        if state.is_world_process_zero and phases:
            self._say_block(tables.plan_lines(phases), tables.plan_table(phases))

    def on_operation(
        self, args: Any, state: TrainerState, control: Any, record: Record | None = None, **kwargs: Any
    ) -> None:
        """An operation has been applied."""
        if not state.is_world_process_zero or record is None:
            return
        self._seen.append(record)
        if record.after.get("loss") is None:
            self._waiting.append(record.index)
        self._status.facts = dict(self._facts())
        self._say_block([f"{self._at(state)}{tables.operation_line(record)}"], tables.banner(record))
        self._refresh(state, now=True)

    def on_example(
        self, args: Any, state: TrainerState, control: Any, example: Example | None = None, **kwargs: Any
    ) -> None:
        """The example of an evaluation."""
        if state.is_world_process_zero and example is not None:
            lines = [f"{self._at(state)}{line}" for line in example_lines(example)]
            self._say_block(lines, example_panel(example, state.global_step))

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._say(f"{self._at(state)}checkpoint saved")

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self._refresh(state, now=True)
        self.close()
        if line := timing_line(self._timing()):
            self._say(f"Time: {line}")
        if records := list(self._records()):
            later = self._later()
            self._say_block(tables.operations_lines(records, later), tables.operations_table(records, later))
        for line in (*undone_lines(self._undone()), *self._left()):
            self._say(line)

    # Parts ------------------------------------------------------------------------------------------------------------

    def _reset(self) -> None:
        self._status = Status()
        self._steps, self._throughput = Rate(), Rate()
        self._started, self._refreshed = time.monotonic(), 0.0
        self._batches, self._diverged, self._first_step = 0, False, 0

    def _on_train_loss(self, numbers: Mapping[str, float], state: TrainerState) -> None:
        """One line per log: in the bar on a terminal, printed elsewhere. NaN is pointed out once, until it is over."""
        loss = float(numbers["loss"])
        self._status.loss = loss
        self._status.learning_rate = numbers.get("learning_rate", self._status.learning_rate)
        self._sample(state)
        facts = [f"loss {loss_text(loss)}"]
        if "learning_rate" in numbers:
            facts.append(f"lr {rate_text(numbers['learning_rate'])}")
        if "grad_norm" in numbers:
            facts.append(f"grad norm {numbers['grad_norm']:.3g}")
        if self._status.tokens_per_second is not None:
            facts.append(f"{count(self._status.tokens_per_second)} tokens/s")
        facts += [f"{label} {text}" for label, text in self._status.memory]
        facts += [part for part in (self._parameters(), shape_text(self._status.facts)) if part]
        self._say(f"{self._at(state)}{', '.join(facts)}", bar=True)
        if not math.isfinite(loss) and not self._diverged:
            self._say(f"{self._at(state)}the training loss is {loss_text(loss)}", level=logging.WARNING)
        self._diverged = not math.isfinite(loss)
        self._refresh(state, now=True)

    def _next(self) -> str:
        upcoming = self._upcoming()
        if upcoming is None:
            return ""
        return f"; next {operation_text(upcoming.operation, upcoming.value)}: {upcoming.progress}"

    def _parameters(self) -> str:
        return f"{count(self._status.facts['parameters'])} parameters" if "parameters" in self._status.facts else ""

    @staticmethod
    def _at(state: TrainerState) -> str:
        return f"step {state.global_step:,}/{state.max_steps:,}: " if state.max_steps > 0 else ""

    def _sample(self, state: TrainerState) -> None:
        now = time.monotonic()
        self._status.step, self._status.total = state.global_step, max(0, state.max_steps)
        self._status.elapsed = now - self._started
        self._steps.add(state.global_step, now)
        self._throughput.add(self._tokens(), self._seconds())
        self._status.memory = self._memory()
        self._status.steps_per_second = self._steps.per_second
        self._status.tokens_per_second = self._throughput.per_second

    def _refresh(self, state: TrainerState, *, now: bool = False) -> None:
        """Redraw the live lines, a few times a second at most: this runs at every step."""
        if self._live is None:
            return
        moment = time.monotonic()
        if not now and moment - self._refreshed < _REFRESH_SECONDS:
            return
        self._refreshed = moment
        self._sample(state)
        self._status.upcoming = self._upcoming()
        self._live.refresh()

    def _say(self, line: str, *, bar: bool = False, level: int = logging.INFO) -> None:
        """Show and log one line. `bar`: a terminal shows the same in the live lines."""
        style = "bold red" if level >= logging.WARNING else ""
        self._say_block([clean(line)], Text(clean(line), style=style), bar=bar, level=level)

    def _say_block(
        self, lines: Sequence[str], drawn: RenderableType, *, bar: bool = False, level: int = logging.INFO
    ) -> None:
        printed = True
        if self.console.is_terminal:
            if not bar:
                self.console.print(drawn)
        elif log.console_logging() and log.LOGGER.isEnabledFor(level):
            printed = False  # the application's own logging prints it
        else:
            for line in lines:
                self.console.print(Text(line), soft_wrap=True)
        for line in lines:
            log.write_line(line, level, printed=printed)


def _numbers(values: Mapping[str, Any] | None) -> dict[str, float]:
    """The plain numbers among `values`. Tensors are left alone: reading one would wait for the device."""
    return {key: float(value) for key, value in (values or {}).items() if isinstance(value, Real)}


def _finished(numbers: Mapping[str, float], state: TrainerState, begun: int) -> str:
    loss = ""
    # Of all steps of the run; 0 if this process made none and the checkpoint, an old one, tells of none.
    if numbers.get("train_loss") or ("train_loss" in numbers and state.global_step > begun):
        loss = f", mean training loss {loss_text(numbers['train_loss'])}"
    word = "Finished" if state.global_step >= state.max_steps else "Stopped"
    return f"{word} at step {state.global_step:,}/{state.max_steps:,} after {duration(numbers['train_runtime'])}{loss}"
