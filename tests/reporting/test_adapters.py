"""LoRA adapters in every view of a run, and nothing about them in a run without."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from rich.console import RenderableType

from morphing_trainer.reporting import tables
from morphing_trainer.reporting.adapters import adapter_changes, adapters_text
from morphing_trainer.reporting.console import Status, make_console, shape_text
from morphing_trainer.reporting.records import Phase, Record
from tests.reporting.conftest import records_of

NONE = {"lora_rank": 0, "lora_modules": 0}
EIGHT = {"lora_rank": 8, "lora_modules": 24}
WIDTHS = [80, 110, 140]


def drawn(renderable: RenderableType, width: int) -> str:
    console = make_console(io.StringIO())
    console.width = width
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({}, ""),
        (NONE, ""),
        (EIGHT, "rank 8 on 24 modules"),
        ({"lora_rank": 4, "lora_modules": 1}, "rank 4 on 1 module"),
    ],
)
def test_adapters_in_words(facts: Mapping[str, Any], text: str) -> None:
    assert adapters_text(facts) == text
    assert shape_text({"layers": 4, "hidden": 8, **facts}) == "4 x 8" + (f", LoRA {text}" if text else "")


@pytest.mark.parametrize("none", [{}, NONE])
def test_changes_say_only_what_changed(none: Mapping[str, Any]) -> None:
    assert adapter_changes(none, NONE) == adapter_changes(EIGHT, EIGHT) == []
    assert adapter_changes(none, EIGHT) == [("LoRA", "none -> rank 8 on 24 modules")]
    assert adapter_changes(EIGHT, none, short=True) == [("LoRA", "rank 8 on 24 -> none")]
    assert adapter_changes(EIGHT, {**EIGHT, "lora_rank": 16}) == [("LoRA rank", "8 -> 16")]
    assert adapter_changes(EIGHT, {**EIGHT, "lora_modules": 25}) == [("LoRA modules", "24 -> 25")]


def test_the_plan_in_a_pipe(adapted: list[Phase]) -> None:
    header, *rows = tables.plan_lines(adapted)[1:]
    place = header.index("LoRA")
    cells = [row[place:].split("  ")[0] for row in rows]
    assert cells == ["none", "rank 8 on 24", "rank 8 on 48", "rank 384 on 49", "rank 384 on 49", "none", "none"]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_plan_fits(adapted: list[Phase], width: int) -> None:
    text = drawn(tables.plan_table(adapted), width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    for part in ("rank 8 on 24", "rank 8 on 48", "decrease_vocab_lora_scaling", "trainable", "96.7M", "eval every 200"):
        assert part in text, part
    assert text.count("rank 384 on 49") == 2 and text.count("none") == 3


@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_of_operations_fits(adapted: list[Phase], width: int) -> None:
    text = drawn(tables.operations_table(records_of(adapted)), width)
    flat = " ".join(text.split())
    for part in ("layers 12 -> 24,", "LoRA modules 24 -> 48,", "LoRA rank 8 -> 384,", "decrease_vocab_lora_scaling"):
        assert part in flat, part
    assert text.count("0.345 s") == 5 and "took" in text  # the last column is whole


def test_operations_in_a_pipe(adapted: list[Phase]) -> None:
    rows = tables.operations_lines(records_of(adapted))[2:]
    assert "LoRA none -> rank 8 on 24, trainable 124M -> 96.7M of 125M  " in rows[0]
    assert "layers 12 -> 24, LoRA modules 24 -> 48, trainable" in rows[1]
    assert "LoRA rank 8 -> 384, LoRA modules 48 -> 49, trainable" in rows[2]
    assert "LoRA" not in rows[3]
    assert "LoRA rank 384 on 49 -> none, trainable 154M -> 209M (all)  " in rows[4]


def test_banner_and_log_line(adapted: list[Phase]) -> None:
    came, spread = records_of(adapted)[:2]
    assert "; LoRA none -> rank 8 on 24 modules; parameters 124M -> 125M (+1%); trainable" in tables.operation_line(
        came
    )
    assert "LoRA        none -> rank 8 on 24 modules" in drawn(tables.banner(came), 80)
    assert "; layers 12 -> 24; LoRA modules 24 -> 48; parameters" in tables.operation_line(spread)
    assert "LoRA modules  24 -> 48" in drawn(tables.banner(spread), 80)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_status(width: int) -> None:
    text = drawn(Status(facts={"layers": 24, "hidden": 768, "mlp": 3072, "parameters": 1_000, **EIGHT}), width)
    assert "depth x width 24 x 768, mlp 3072" in text and "LoRA rank 8 on 24 modules" in text
    assert all(len(line) <= width for line in text.splitlines())


def test_a_run_without_adapters_says_nothing_about_them(phases: list[Phase], record: Callable[..., Record]) -> None:
    records = [replace(made, after={**made.after, **NONE}) for made in (record(1, 5), record(2, 6), record(3, 7))]
    views: list[RenderableType] = [tables.plan_table(phases), tables.operations_table(records), Status(facts=NONE)]
    views += [tables.banner(made) for made in records]
    texts = [drawn(view, width) for view in views for width in WIDTHS]
    texts += tables.plan_lines(phases) + tables.operations_lines(records) + [tables.operation_line(r) for r in records]
    assert not [text for text in texts if "LoRA" in text or "rank" in text or "none" in text]


@pytest.mark.parametrize("width", [80, 110])
def test_long_words_do_not_push_the_last_column_out(record: Callable[..., Record], width: int) -> None:
    """Growth that took minutes, in a table with long words in every column."""
    records = [
        record(4, 12_345, operation="change_accumulation", seconds=250.0, trigger="loss < 4.5 or after 12,000 steps"),
        record(2, 23_456, seconds=250.0, trigger="loss < 4.5 or after 12,000 steps"),
    ]
    text = drawn(tables.operations_table(records), width)
    assert text.count("4 min 10 s") == 2 and "took" in text
    assert "change_accumulation" in text
