"""Every operation that changes tensors is measured, against as many bytes as it makes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch

from benchmarks import morph_cost, results
from benchmarks.morph_cost import OPERATIONS, Cost, config, laid_out, measure, parser, table
from benchmarks.results import Kept
from morphing_trainer.operations import OPERATIONS as REGISTERED
from morphing_trainer.operations import ArchitectureOperation

SPEC = config("tiny")


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation(name: str) -> None:
    found = measure(name, "tiny", repeats=1)
    assert len(found.morphs) == len(found.copies) == 1
    assert found.morphs[0] > 0
    assert found.state > found.created


def test_what_is_created() -> None:
    hidden, mlp = SPEC.n_embd, 4 * SPEC.n_embd
    block = 4 * hidden**2 + 2 * hidden * mlp + 9 * hidden + mlp
    steps = 12 * 4  # one number for each tensor, of all that a block has
    assert measure("stack_layers 2", "tiny", repeats=1).created == SPEC.n_layer * (3 * 4 * block + steps)


def test_none_is_missing() -> None:
    tensors = {name for name, kind in REGISTERED.items() if issubclass(kind, ArchitectureOperation)}
    assert {operations[-1]["name"] for operations in OPERATIONS.values()} == tensors


def test_what_is_copied_lies_apart() -> None:
    pool = torch.zeros(1024, dtype=torch.uint8)
    shapes = [
        (torch.Size([10, 10]), torch.float32),
        (torch.Size([]), torch.float32),
        (torch.Size([130]), torch.float32),
    ]
    found = laid_out(shapes, pool)
    assert [(each.shape, each.dtype) for each in found] == shapes
    assert [each.data_ptr() - pool.data_ptr() for each in found] == [0, 448, 0]


def test_the_table() -> None:
    options = parser().parse_args(["--compiled"])
    costs = {"stack_layers 2": Cost(10**6, 10**7, [0.2, 0.4], [0.1, 0.1], 2 * 10**7)}
    costs["then unfreeze_layer"] = Cost(0, 10**7, [0.1], [0.0], 10**7)
    found = table(costs, dict.fromkeys(costs, 1.0), options)
    assert all(len(row) == len(found.columns) for row in found.rows)
    assert found.rows[0][5] == "3.00 (2.00 to 4.00)"
    assert found.rows[1][:1] + found.rows[1][4:] == ["then `unfreeze_layer`", "-", "-", "1.00", "1.0 s"]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--size", "tiny", "--repeats", "1", "--only", "widen_mlp 2"]
    monkeypatch.setattr(results, "KEPT", tmp_path)
    monkeypatch.setattr("sys.argv", ["morph_cost", *words, "--keep", "found"])
    morph_cost.main()
    kept = Kept.load(tmp_path / "found.json")
    assert [row[0] for row in kept.table.rows] == ["`widen_mlp 2`"]
    assert shlex.split(kept.command)[3:] == words


@pytest.mark.long  # it compiles
def test_recompilation() -> None:
    assert morph_cost.recompilation(OPERATIONS["stack_layers 2"], SPEC) > 0
