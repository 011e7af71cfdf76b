"""What `report_to` gets: operations as markers, the model's size as a series, in the files that the tools write."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.support import trainer
from tests.trainer.common import entry

SCHEDULE = [entry("stack_layers", 2, 4), entry("freeze_layer", "wpe", 3)]


def test_tensorboard_gets_series_and_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what protobuf has deprecated
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
        run = trainer(tmp_path / "run", SCHEDULE, report_to="tensorboard")
        run.train()
        found = EventAccumulator(str(tmp_path / "board")).Reload()

    def series(name: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in found.Scalars(f"train/{name}")]

    sizes: list[Any] = [series(f"morph/{name}") for name in ("layers", "operations")]
    assert sizes == [[(0, 2), (4, 4), (7, 4)], [(0, 0), (4, 1), (7, 2)]]
    parameters = series("morph/parameters")
    assert [step for step, _ in parameters] == [0, 4, 7] and parameters[0][1] < parameters[1][1] == parameters[2][1]
    assert series("morph/trainable")[2][1] < parameters[2][1]
    names = [event.tensor_proto.string_val[0].decode() for event in found.Tensors("train/morph/operation/text_summary")]
    assert names == ["stack_layers 2", "freeze_layer wpe"]
    assert [event.step for event in found.Tensors("train/morph/operation/text_summary")] == [4, 7]
    assert [step for step, _ in series("loss")] == list(range(1, 13))


def test_a_run_without_operations_logs_no_sizes(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.train()
    assert not any(key.startswith("morph/") for line in run.state.log_history for key in line)
