from __future__ import annotations

import io
import logging
import math
import os
import pty
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    ProgressCallback,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

from morphing_trainer.reporting import log
from morphing_trainer.reporting.console import make_console
from morphing_trainer.reporting.display import RunDisplay
from morphing_trainer.reporting.records import Phase, Record, Upcoming

Maker = Callable[..., Record]


class Run:
    """A display driven through transformers' own callback handler."""

    def __init__(self, folder: Path, console: Console, *, main: bool = True, **options: Any) -> None:
        self.tokens, self.seconds, self.reads = 0, 0.0, 0
        self.facts = {"layers": 4, "hidden": 128, "mlp": 512, "parameters": 1_230_000}
        self.display = RunDisplay(
            upcoming=self._upcoming,
            tokens=lambda: self.tokens,
            seconds=lambda: self.seconds,
            facts=lambda: self.facts,
            console=console,
            **options,
        )
        self.handler = CallbackHandler([DefaultFlowCallback(), self.display], None, None, None, None)
        self.state = TrainerState(max_steps=1000, is_world_process_zero=main)
        self.control = TrainerControl()
        self.args = TrainingArguments(output_dir=str(folder), report_to=[], use_cpu=True)

    def _upcoming(self) -> Upcoming:
        self.reads += 1
        return Upcoming("stack_layers", 2.0, "loss 4.312, fires below 4.0")

    def event(self, name: str, step: int | None = None, **values: Any) -> None:
        self.state.global_step = self.state.global_step if step is None else step
        if name in ("on_plan", "on_operation"):  # the library's handler calls these, not that of transformers
            getattr(self.display, name)(self.args, self.state, self.control, **values)
        else:
            self.handler.call_event(name, self.args, self.state, self.control, **values)


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def run(tmp_path: Path, stream: io.StringIO) -> Iterator[Run]:
    made = Run(tmp_path, make_console(stream))
    yield made
    made.display.close()


@pytest.fixture
def live(tmp_path: Path, stream: io.StringIO) -> Iterator[Run]:
    """As `run`, on something that takes itself for a terminal."""
    made = Run(tmp_path, Console(file=stream, force_terminal=True, width=100, color_system=None, markup=False))
    yield made
    made.display.close()


def logged(folder: Path) -> list[str]:
    return [line.split(" ", 2)[2] for line in (folder / "logs" / "train.log").read_text().splitlines()]


def test_off_a_terminal_everything_is_a_plain_line(
    run: Run, stream: io.StringIO, tmp_path: Path, phases: list[Phase], record: Maker
) -> None:
    log.open_run_log(tmp_path)
    run.event("on_plan", phases=phases)
    run.event("on_train_begin", 0)
    run.tokens, run.seconds = 50_000, 5.0
    run.event("on_step_end", 10)
    run.event("on_log", logs={"loss": 4.1, "learning_rate": 3e-4, "grad_norm": 1.25, "epoch": 0.1})
    run.event("on_log", logs={"eval_loss": 4.0, "eval_runtime": 1.5, "epoch": 0.1})
    run.event("on_evaluate", metrics={"eval_loss": 4.0, "eval_accuracy": 0.5, "eval_runtime": 1.5, "epoch": 0.1})
    run.facts = {**run.facts, "layers": 8, "parameters": 2_020_000}
    run.event("on_operation", record=record(2, 10, (4.0, 4.5)))
    run.event("on_log", 20, logs={"loss": 4.4, "learning_rate": 3e-4})
    run.event("on_save")
    run.event("on_log", logs={"train_runtime": 12.3, "train_loss": 4.25})
    run.event("on_train_end")
    log.close_run_log()

    shown = stream.getvalue().splitlines()
    assert shown[0] == "Schedule: 4 operations" and shown[7].strip().startswith("target")
    assert shown[8] == "Training from step 0 to 1,000: 4 x 128, mlp 512, 1.23M parameters"
    assert shown[9] == (
        "step 10/1,000: loss 4.100, lr 3e-4, grad norm 1.25, 10.0k tokens/s, 1.23M parameters, 4 x 128, mlp 512"
    )
    assert shown[10] == (
        "step 10/1,000: evaluation loss 4.000, accuracy 0.5000 (1.50 s); "
        "next stack_layers 2: loss 4.312, fires below 4.0"
    )
    assert shown[11].startswith(
        "step 10/1,000: stack_layers [0, 0, 1, 1, 2, 2, 3, 3]: loss 4.432 < 4.5; layers 4 -> 8;"
    )
    assert "2.02M parameters, 8 x 128" in shown[12]
    assert shown[13] == "step 20/1,000: checkpoint saved"
    assert shown[14] == "Stopped at step 20/1,000 after 12.3 s, mean training loss 4.250"
    assert shown[15] == "1 operation applied" and shown[17].startswith("10 ") and len(shown) == 18
    for forbidden in ("\x1b", "\r", "─", "│", "━"):
        assert forbidden not in stream.getvalue()
    assert logged(tmp_path) == shown


def test_on_a_terminal_banners_are_drawn_and_the_log_has_plain_lines(
    live: Run, stream: io.StringIO, tmp_path: Path, phases: list[Phase], record: Maker
) -> None:
    log.open_run_log(tmp_path)
    live.event("on_plan", phases=phases)
    live.event("on_train_begin", 0)
    live.event("on_log", 10, logs={"loss": 4.1234, "learning_rate": 3e-4})
    live.event("on_evaluate", metrics={"eval_loss": 4.0567})
    live.event("on_operation", record=record(2, 10, (4.0567, None)))
    live.event("on_train_end")
    log.close_run_log()
    text = stream.getvalue()
    assert "╭─ stack_layers [0, 0, 1, 1, 2, 2, 3, 3] " in text and "target" in text and "1 operation applied" in text
    for part in ("step 10/1,000", "loss 4.123", "eval 4.057", "lr 3e-4", "parameters 1.23M", "4 x 128, mlp 512"):
        assert part in text, part
    assert "fires below 4.0" in text
    lines = logged(tmp_path)
    assert any(line.startswith("step 10/1,000: loss 4.123, lr 3e-4") for line in lines)  # only the bar shows it
    assert any(line.startswith("step 10/1,000: stack_layers") for line in lines)
    assert not any("╭" in line or "\x1b" in line for line in lines)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_evaluation_loss_is_said_in_words(run: Run, stream: io.StringIO, tmp_path: Path, value: float) -> None:
    log.open_run_log(tmp_path)
    run.event("on_train_begin", 0)
    run.event("on_evaluate", 50, metrics={"eval_loss": value})
    log.close_run_log()
    name = "NaN" if math.isnan(value) else "inf"
    assert f"the evaluation loss is {name}: the model has diverged. No loss trigger fires on it." in stream.getvalue()
    assert " WARNING step 50/1,000: the evaluation loss is" in (tmp_path / "logs" / "train.log").read_text()


def test_a_broken_training_loss_is_pointed_out_once_per_streak(run: Run, stream: io.StringIO) -> None:
    run.event("on_train_begin", 0)
    for step, loss in enumerate([4.0, math.nan, math.nan, 4.0, math.nan]):
        run.event("on_log", step, logs={"loss": loss})
    assert stream.getvalue().count("the training loss is NaN") == 2
    assert stream.getvalue().count("loss NaN") == 3


def test_the_table_after_the_run_knows_the_loss_of_the_next_evaluation(
    run: Run, stream: io.StringIO, record: Maker
) -> None:
    run.event("on_train_begin", 0)
    run.event("on_operation", 10, record=record(1, 10))
    run.event("on_evaluate", 50, metrics={"eval_loss": 3.9})
    run.event("on_evaluate", 60, metrics={"eval_loss": 3.1})
    run.event("on_train_end")
    assert "4.432 -> 3.900*" in stream.getvalue() and "3.100*" not in stream.getvalue()


def test_the_table_after_a_resumed_run_holds_earlier_operations(
    tmp_path: Path, stream: io.StringIO, record: Maker
) -> None:
    records = [record(1, 5, (5.0, 5.0)), record(4, 10, (4.0, 4.0))]
    run = Run(tmp_path, make_console(stream), records=lambda: records)
    run.event("on_train_begin", 8)
    run.event("on_operation", 10, record=records[1])
    run.event("on_train_end")
    assert "2 operations applied" in stream.getvalue() and "change_lr 2" in stream.getvalue()


def test_other_logs_are_shown_and_tensors_are_not_read(run: Run, stream: io.StringIO) -> None:
    class Device(torch.Tensor):
        def __float__(self) -> float:
            raise AssertionError("read from the device")

    run.event("on_train_begin", 0)
    run.event("on_log", 10, logs={"my_metric": 1.5, "epoch": 1.0})
    run.event("on_log", 11, logs={"morph/step": 1.5, "total_flos": 3})
    run.event("on_log", 12, logs={"loss": 2.0, "grad_norm": torch.tensor(1.0).as_subclass(Device)})
    lines = stream.getvalue().splitlines()[1:]
    assert lines[0] == "step 10/1,000: my_metric 1.5"
    assert len(lines) == 2 and lines[1].startswith("step 12/1,000: loss 2.000, 1.23M")


def test_other_processes_stay_silent(tmp_path: Path, stream: io.StringIO, phases: list[Phase], record: Maker) -> None:
    run = Run(tmp_path, Console(file=stream, force_terminal=True), main=False)
    run.event("on_plan", phases=phases)
    run.event("on_train_begin", 0)
    run.event("on_step_end", 1)
    run.event("on_log", logs={"loss": 4.0, "train_runtime": 1.0})
    run.event("on_prediction_step")
    run.event("on_evaluate", metrics={"eval_loss": math.nan})
    run.event("on_operation", record=record(1, 1))
    run.event("on_save")
    run.event("on_train_end")
    assert stream.getvalue() == "" and not log.LOGGER.handlers


def test_steps_are_cheap(live: Run, run: Run) -> None:
    """The next operation is asked for when the lines are redrawn, a few times a second, not at every step."""
    live.event("on_train_begin", 0)
    for step in range(2000):
        live.event("on_step_end", step)
    assert 1 <= live.reads < 200
    run.event("on_train_begin", 0)
    for step in range(100):
        run.event("on_step_end", step)
    assert run.reads == 0


def test_close_gives_the_terminal_back_and_may_be_repeated(live: Run, stream: io.StringIO) -> None:
    stdout = sys.stdout
    live.event("on_train_begin", 0)
    assert stream.getvalue().count("\x1b[?25l") == 1  # the cursor is hidden
    live.display.close()
    live.display.close()
    assert stream.getvalue().count("\x1b[?25h") == 1
    assert sys.stdout is stdout and not log.LOGGER.handlers
    live.event("on_step_end", 5)  # a late event draws nothing
    assert stream.getvalue().endswith("\x1b[?25h")


def test_a_second_run_after_one_that_failed(live: Run, stream: io.StringIO) -> None:
    live.event("on_train_begin", 0)  # and then an exception: neither on_train_end nor close
    live.event("on_train_begin", 0)
    live.event("on_train_end")
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 2


def test_messages_of_other_parts_appear_among_the_lines(run: Run, stream: io.StringIO) -> None:
    run.event("on_train_begin", 0)
    logging.getLogger("morphing_trainer.data").warning("few samples")
    assert stream.getvalue().splitlines()[-1] == "warning: few samples"


def test_an_application_that_logs_to_the_console_sees_each_line_once(run: Run, stream: io.StringIO) -> None:
    own = logging.StreamHandler(stream)
    own.stream.name = "<stdout>"
    logging.getLogger().addHandler(own)
    try:
        run.event("on_train_begin", 0)
        run.event("on_log", 10, logs={"loss": 4.0})
    finally:
        logging.getLogger().removeHandler(own)
    assert len(stream.getvalue().splitlines()) == 2


def test_evaluation_outside_training(run: Run, stream: io.StringIO) -> None:
    run.state.max_steps = 0
    run.event("on_evaluate", 0, metrics={"eval_loss": 4.0})
    assert stream.getvalue().startswith("evaluation loss 4.000;")


def tiny_trainer(folder: Path) -> Trainer:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16, n_positions=8, bos_token_id=0, eos_token_id=0)
    rows = [{"input_ids": torch.arange(8) % 16, "labels": torch.arange(8) % 16} for _ in range(8)]
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=2,
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    return Trainer(GPT2LMHeadModel(config), args, train_dataset=rows, eval_dataset=rows)


def test_with_a_real_trainer(tmp_path: Path, stream: io.StringIO, capfd: pytest.CaptureFixture[str]) -> None:
    trainer = tiny_trainer(tmp_path)
    facts = {"layers": 1, "hidden": 8, "mlp": 32, "parameters": trainer.model.num_parameters()}
    display = RunDisplay(
        upcoming=lambda: None,
        tokens=lambda: 16 * trainer.state.global_step,
        seconds=lambda: 0.1 * trainer.state.global_step,
        facts=lambda: facts,
        console=make_console(stream),
    )
    display.install(trainer)
    assert not any(isinstance(callback, ProgressCallback) for callback in trainer.callback_handler.callbacks)
    trainer.train()
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("Training from step 0 to 4: 1 x 8, mlp 32, ")
    assert [line.split(" ", 3)[1:3] for line in lines[1:5]] == [
        ["2/4:", "loss"],
        ["2/4:", "evaluation"],
        ["4/4:", "loss"],
        ["4/4:", "evaluation"],
    ]
    assert "160 tokens/s" in lines[1] and lines[5].startswith("Finished at step 4/4 after ") and len(lines) == 6
    captured = capfd.readouterr()
    assert captured.out == "" and "%|" not in captured.err  # neither printer nor tqdm


def test_ctrl_c_under_a_pseudo_terminal(tmp_path: Path) -> None:
    """The real thing: lines are redrawn while running, and the cursor is shown again when the process dies."""
    script = textwrap.dedent(
        """
        import signal, os
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits "ignore"
        from transformers import TrainerControl, TrainerState
        from morphing_trainer.reporting.display import RunDisplay
        display = RunDisplay(upcoming=lambda: None, tokens=lambda: 0, seconds=lambda: 0.0, facts=lambda: {"layers": 3})
        state = TrainerState(max_steps=100)
        display.on_train_begin(None, state, TrainerControl())
        state.global_step = 42
        display.on_log(None, state, TrainerControl(), logs={"loss": 1.5})
        os.kill(os.getpid(), signal.SIGINT)  # nobody calls close
        """
    )
    main, terminal = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR", "COLUMNS")}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=terminal, stderr=subprocess.PIPE, env=environment
    ) as process:
        os.close(terminal)
        output = b""
        while True:
            try:
                chunk = os.read(main, 65536)
            except OSError:  # the other end is closed
                break
            if not chunk:
                break
            output += chunk
        assert process.stderr is not None and b"KeyboardInterrupt" in process.stderr.read()
    os.close(main)
    text = output.decode()
    assert "step 42/100" in text and "1.500" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


@pytest.mark.parametrize(
    ("begun", "loss", "said"),
    [(0, 4.25, ", mean training loss 4.250"), (20, 4.25, ", mean training loss 4.250"), (20, 0.0, "")],
)
def test_the_mean_loss_is_that_of_the_run(run: Run, stream: io.StringIO, begun: int, loss: float, said: str) -> None:
    """Also of one that had nothing left to do; if it does not know that of the steps before, there is none."""
    run.event("on_train_begin", begun)
    run.event("on_log", 20, logs={"train_runtime": 12.3, "train_loss": loss})
    run.event("on_train_end", 20)
    assert f"Stopped at step 20/1,000 after 12.3 s{said}\n" in stream.getvalue()
