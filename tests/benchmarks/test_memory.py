"""What is counted is what torch has allocated, to the byte; both trainers train the same."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from benchmarks import memory, results
from benchmarks.allocations import Meter, Span, spans
from benchmarks.memory import CONTESTANTS, measure, parser, table
from benchmarks.results import Kept

WORDS = ["--layers", "1", "--hidden", "16", "--vocabulary", "100", "--length", "32", "--batch", "2"]
TINY = parser().parse_args(WORDS)
MB = 1 << 20


def test_spans() -> None:
    events = [
        (5, "allocations: b", 0),
        (1, "[memory]", 10),
        (2, "allocations: a", 0),
        (4, "[memory]", -25),
        (3, "[memory]", 20),
    ]
    assert spans([*events, (6, "aten::mm", 7)]) == {"a": Span(0, 10, 10), "b": Span(10, 30, 5)}


def test_a_meter() -> None:
    meter = Meter()
    with meter.measuring():
        kept = torch.zeros(2 * MB, dtype=torch.uint8)
        meter.mark("begin")
        passing = torch.zeros(3 * MB, dtype=torch.uint8)
        del passing
        more = torch.zeros(MB, dtype=torch.uint8)
        meter.mark("found")
    found = meter.spans["found"]
    assert [round(size / MB) for size in (found.before, found.peak, found.after)] == [2, 5, 3]
    assert len(kept) + len(more) == 3 * MB


def test_the_trainers() -> None:
    (ours, losses), (theirs, expected) = measure("MorphingTrainer", TINY), measure("Trainer", TINY)
    assert losses == expected and len(losses) == memory.STEPS
    weights = sum(each.numel() * each.element_size() for each in memory.new_model(memory.config(TINY), 0).parameters())
    for found in (ours, theirs):
        assert found["step"].before > 3 * weights  # with the moments
        assert found["step"].peak > 4 * weights  # with gradients
        assert found["save"].after <= found["save"].peak < found["step"].peak
    # Small things, such as the state of the random numbers, are the same however large a model is.
    assert ours["step"].peak - theirs["step"].peak < 20_000


@pytest.mark.parametrize("kind", memory.MORPHS)
def test_a_morph(kind: str) -> None:
    found = measure(kind, TINY)[0]["morph"]
    assert found.before < found.after <= found.peak < found.before + 1.1 * found.after


def test_the_table() -> None:
    span = Span(2 * 10**6, 5 * 10**6, 3 * 10**6)
    found = table({kind: dict.fromkeys(("step", "save", "morph"), span) for kind in CONTESTANTS}, TINY)
    assert all(len(row) == len(found.columns) for row in found.rows)
    assert found.rows[1] == ["step, MorphingTrainer", "2 MB", "5 MB", "3 MB", "2.50", "1.000"]
    assert found.rows[-1] == ["`widen_mlp 2`", "2 MB", "5 MB", "3 MB", "2.50", "-"]


@pytest.mark.long  # it starts processes
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "KEPT", tmp_path)
    monkeypatch.setattr("sys.argv", ["memory", *WORDS, "--keep", "found"])
    memory.main()
    kept = Kept.load(tmp_path / "found.json")
    assert len(kept.table.rows) == 6
    assert isinstance(memory.parser().parse_args(kept.command.split()[3:]), argparse.Namespace)
