from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console, RenderableType

from morphing_trainer.reporting import tables
from morphing_trainer.reporting.console import clock, count, duration, loss_text, operation_text, rate_text
from morphing_trainer.reporting.records import Phase, Record

Maker = Callable[..., Record]


def drawn(renderable: RenderableType, width: int = 140) -> str:
    """What an ordinary console, markup on, shows."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False, highlight=False)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("write", "value", "expected"),
    [
        (count, 999, "999"),
        (count, 1000, "1.00k"),
        (count, 456_000, "456k"),
        (count, 999_999, "1.00M"),
        (count, 1_230_000, "1.23M"),
        (count, 124_439_808, "124M"),
        (count, 7e9, "7.00B"),
        (loss_text, 4.3, "4.300"),
        (loss_text, 10.82345, "10.82"),
        (loss_text, math.nan, "NaN"),
        (loss_text, math.inf, "inf"),
        (loss_text, None, "-"),
        (rate_text, 3e-4, "3e-4"),
        (rate_text, 2.5e-5, "2.5e-5"),
        (rate_text, 0.5, "0.5"),
        (rate_text, 0.0, "0"),
        (duration, 0.012, "12 ms"),
        (duration, 12.34, "12.3 s"),
        (duration, 250, "4 min 10 s"),
        (duration, 3600 * 2 + 300, "2 h 05 min"),
        (clock, 3661.9, "1:01:01"),
    ],
)
def test_numbers_are_written_for_people(write: Callable[[Any], str], value: Any, expected: str) -> None:
    assert write(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "op"),
        (2.0, "op 2"),
        (3e-4, "op 3e-4"),
        ([0, 0, 1], "op [0, 0, 1]"),
        (["attn.2", 16], "op [attn.2, 16]"),
        ({"target_vram_percent": 82}, "op {target_vram_percent: 82}"),
        ("mlp.*\x1b[31m\n", "op mlp.*"),
    ],
)
def test_operation_text(value: Any, expected: str) -> None:
    assert operation_text("op", value) == expected


def test_a_long_value_is_cut_short() -> None:
    text = operation_text("stack_layers", list(range(200)))
    assert text.endswith("...") and len(text) < 80


def test_plan_goes_from_the_start_to_the_target(phases: list[Phase]) -> None:
    heading, header, *rows = tables.plan_lines(phases)
    assert heading == "Schedule: 4 operations"
    assert header.split("  ")[0] == "#" and "depth x width" in header
    assert len(rows) == 6
    assert (
        rows[0].startswith("0  start") and "lr 3e-4, batch 8, warm-up 100, eval batches 50, eval every 200" in rows[0]
    )
    assert "change_lr 2" in rows[1] and "lr 3e-4 -> 6e-4" in rows[1] and "loss < 8.5 or after 100 steps" in rows[1]
    assert "stack_layers [0, 0, 1, 1, 2, 2, 3, 3]" in rows[2] and "8 x 128, mlp 512" in rows[2] and "2.02M" in rows[2]
    assert "lr" not in rows[2]  # nothing changed but the shape
    assert "1.80M" in rows[3]  # trainable
    assert "batch 8 -> 16, accumulation 1 -> 2" in rows[4]
    assert "target" in rows[5] and "8 x 128, mlp 512" in rows[5] and "lr 6e-4, batch 16, accumulation 2" in rows[5]


def test_trainable_is_a_number_only_where_something_is_frozen(phases: list[Phase]) -> None:
    rows = tables.plan_lines(phases)[2:]
    assert [" all " in row for row in rows] == [True, True, True, False, False, False]


@pytest.mark.parametrize("width", [80, 140])
def test_plan_table_says_the_same_and_fits(phases: list[Phase], width: int) -> None:
    text = drawn(tables.plan_table(phases), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    for part in ("start", "target", "change_lr 2", "lr 3e-4 -> 6e-4", "[0, 0, 1, 1", "8 x 128, mlp 512", "1.80M"):
        assert part in text, part
    for part in ("batch 8 -> 16,", "accumulation 1 -> 2"):
        assert part in text, part


def test_what_repeats_to_the_end_is_marked_and_has_no_target(phases: list[Phase]) -> None:
    *once, third, last = phases
    heading, _, *rows = tables.plan_lines([*once, replace(third, repeats=True), replace(last, repeats=True)])
    assert heading == "Schedule: 2 operations, then 2 operations repeated to the end"
    assert len(rows) == 5
    assert [row.endswith(", repeated") for row in rows] == [False, False, False, True, True]
    text = drawn(tables.plan_table([*once, replace(third, repeats=True)]), 140)
    assert "repeated" in text.split("freeze_layer")[1] and "target" not in text
    resumed = tables.plan_lines([third, replace(last, repeats=True)])
    assert resumed[0] == "Schedule: 1 operation repeated to the end, 3 done"


def test_an_empty_schedule_has_a_start_and_no_target(phases: list[Phase]) -> None:
    lines = tables.plan_lines(phases[:1])
    assert lines[0] == "Schedule: no operations" and len(lines) == 3
    assert tables.plan_lines([]) == []


def test_operations_table(record: Maker) -> None:
    records = [
        record(1, 100, (None, None)),
        record(2, 2000, (4.4321, 5.0), seconds=1.234),
        record(3, 3000),
        record(4, 4000, (3.9, 3.9)),
    ]
    heading, header, *rows = tables.operations_lines(records)
    assert heading == "4 operations applied" and header.split()[0] == "step"
    assert "change_lr 2" in rows[0] and "lr 3e-4 -> 6e-4" in rows[0] and "next evaluation" in rows[0]
    assert rows[1].startswith("2,000") and "layers 4 -> 8" in rows[1] and "1.23M -> 2.02M" in rows[1]
    assert "4.432 -> 5.000" in rows[1] and "1.23 s" in rows[1] and "lr" not in rows[1] and "loss 4.432 < 4.5" in rows[1]
    assert "trainable 2.02M -> 1.80M of 2.02M" in rows[2]
    assert "batch 8 -> 16, accumulation 1 -> 2" in rows[3]
    for width in (80, 140):
        text = drawn(tables.operations_table(records), width)
        assert all(len(line) <= width for line in text.splitlines()) and "…" not in text
        assert "layers 4 -> 8" in text and "loss 4.432 < 4.5" in text and "12 ms" in text


def test_a_loss_measured_later_is_marked_as_such(record: Maker) -> None:
    records = [record(1, 100), record(2, 200, (4.0, 5.0))]
    lines = tables.operations_lines(records, {0: 4.1, 1: 9.9})
    assert "4.432 -> 4.100*" in lines[2] and lines[-1].startswith("* at the next evaluation")
    assert "4.000 -> 5.000 " in lines[3]  # measured right after: the later one does not replace it
    assert "* at the next evaluation" in drawn(tables.operations_table(records, {0: 4.1}))
    assert "*" not in "".join(tables.operations_lines(records))


def test_no_operations() -> None:
    assert tables.operations_lines([]) == ["No operation was applied."]
    assert "No operation was applied." in drawn(tables.operations_table([]))


def both(record: Record) -> tuple[str, str]:
    return drawn(tables.banner(record), 80), tables.operation_line(record)


def test_banner_of_growth(record: Maker) -> None:
    moments = {"carried": 1_230_000, "scaled": 0, "newborn": 790_000, "dropped": 0}
    made = record(2, 500, (4.4321, 5.0123), desc="grow", moments=moments, preserving=False, seconds=1.234)
    panel, line = both(made)
    for text in (panel, line):
        assert "stack_layers [0, 0, 1, 1, 2, 2, 3, 3]" in text
        assert "grow" in text and "loss 4.432 < 4.5" in text
        assert "4 -> 8" in text and "1.23M -> 2.02M (+64%)" in text
        assert "1.23M carried, 790k newborn" in text and "scaled" not in text and "dropped" not in text
        assert "changed, the loss may jump" in text
        assert "4.432 -> 5.012" in text and "1.23 s" in text
        assert "hidden" not in text and "trainable" not in text and "learning rate" not in text
    assert "step 500" in panel and "\n" not in line


def test_banner_of_freezing(record: Maker) -> None:
    moments = {"carried": 1_800_000, "scaled": 0, "newborn": 0, "dropped": 220_000}
    for text in both(record(3, 500, moments=moments, preserving=True)):
        assert "2.02M -> 1.80M of 2.02M" in text
        assert "1.80M carried, 220k dropped" in text
        assert "preserved" in text and "parameters" not in text
        assert "4.432 -> next evaluation" in text


def test_banner_of_hyper_parameters_has_no_rows_on_the_model(record: Maker) -> None:
    for text in both(record(1, 500, (None, None))):
        assert "3e-4 -> 6e-4" in text and "next evaluation" in text
        for absent in ("moments", "function", "parameters", "layers", "None", "note"):
            assert absent not in text, absent
    for text in both(record(4, 500, (4.0, math.nan))):
        assert "8 -> 16" in text and "1 -> 2" in text and "4.000 -> NaN" in text


def test_banner_of_a_schedule_reset_and_a_note(record: Maker) -> None:
    made = record(4, 500)
    made = record(4, 500, after={**made.before, "lr_anchor": 1500}, note="decay starts [again]")
    for text in both(made):
        assert "restarts at step 1,500" in text and "decay starts [again]" in text


def test_records_that_hold_only_what_changed(record: Maker) -> None:
    made = record(1, 5, before={"learning_rate": 1e-3, "loss": None}, after={"learning_rate": 2e-3, "loss": 3.0})
    assert "1e-3 -> 2e-3" in tables.operation_line(made)
    assert "lr 1e-3 -> 2e-3" in tables.operations_lines([made])[2]


def test_text_from_files_cannot_draw_on_the_terminal(record: Maker) -> None:
    for text in both(record(1, 5, desc="\x1b[2Jbad\r\nlines [red]x[/red]", trigger="a\nb")):
        assert "\x1b" not in text and "\r" not in text and "bad lines [red]x[/red]" in text and "a b" in text


@pytest.mark.parametrize("width", [80, 140])
def test_tables_show_brackets_and_keep_names_whole(record: Maker, phases: list[Phase], width: int) -> None:
    made = record(4, 123_456, operation="decrease_vocab_lora_scaling", trigger="[red]loss[/red] is low")
    text = drawn(tables.operations_table([made]), width)
    assert "decrease_vocab_lora_scaling" in text and "[red]loss[/red]" in text
    renamed = [*phases[:1], replace(phases[1], operation="decrease_vocab_lora_scaling", trigger="[red]loss[/red]")]
    text = drawn(tables.plan_table(renamed), width)
    assert "decrease_vocab_lora_scaling" in text and "[red]loss[/red]" in text
