"""The loss after an operation: by one rule in the run's log, its journal, and after a resume."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from morphing_trainer.cli import morph
from morphing_trainer.run.changes import changes_of, operations_of
from morphing_trainer.run.journal import Event, effective
from tests.run.test_journal import evaluation, operation, resume
from tests.support import trainer
from tests.trainer.common import StopsAfter, entry

SCHEDULE = [entry("widen_mlp", 2, 2), entry("set_lr", 1e-3, 1), entry("stack_layers", 2, 3, reevaluate=True)]
SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
SAVING |= {"eval_steps": 4, "logging_steps": 1, "max_steps": 10}


def losses(events: list[Event]) -> list[tuple[float | None, float | None]]:
    """(right after, later) of each operation."""
    found = changes_of(effective(events), events)
    records, later = operations_of(effective(events))
    assert later == {change.record.index: change.later for change in found if change.later is not None}
    assert records == [change.record for change in found]
    return [(change.record.after["loss"], change.later) for change in found]


def test_an_evaluation_after_more_training_is_a_later_one() -> None:
    assert losses([operation(0, 5), evaluation(0, 10)]) == [(None, 2.0)]
    assert losses([operation(0, 5), evaluation(0, 5), operation(1, 7), evaluation(1, 9, 3.0)]) == [
        (2.0, None),
        (None, 3.0),
    ]


def test_operations_share_the_first_evaluation_after_them() -> None:
    told = [operation(0, 5), operation(1, 6), operation(2, 8), evaluation(2, 8), operation(3, 9)]
    assert losses(told) == [(None, 2.0), (None, 2.0), (2.0, None), (None, None)]
    assert losses([*told, resume(7, 2), evaluation(1, 10, 4.0)]) == [(None, 4.0), (None, 4.0)]


@pytest.mark.parametrize("resumed", [False, True])
def test_log_and_journal_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str], resumed: bool) -> None:
    if resumed:
        trainer(tmp_path, SCHEDULE, callbacks=[StopsAfter(5)], **SAVING).train()
    run = trainer(tmp_path, SCHEDULE, **SAVING)
    run.train(str(tmp_path / "checkpoint-3") if resumed else None)
    capsys.readouterr()
    assert morph.main(["journal", str(tmp_path)]) == 0
    told = _losses(capsys.readouterr().out)
    logged = (tmp_path / "logs" / "train.log").read_text().rpartition("3 operations applied")[2]
    assert told == _losses(logged)
    after = [loss.rpartition(" ")[2] for loss in told]
    assert after[0] == after[1] and after[0].endswith("*") and not after[2].endswith("*")
    assert "* at the next evaluation" in logged


def _losses(text: str) -> list[str]:
    rows = [line for line in text.splitlines() if re.search(r"(widen_mlp 2|set_lr 1e-3|stack_layers 2)  ", line)]
    loss = re.compile(r"(\S+ -> )?\d\.\d{3}\*?")
    return [next(cell for cell in re.split("  +", row) if loss.fullmatch(cell)) for row in rows]
