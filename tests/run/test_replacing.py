"""A run that takes the place of another one says so."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from morphing_trainer.run.replacing import replaced
from tests.support import trainer
from tests.trainer.common import StopsAfter


def told(folder: Path) -> list[str]:
    text = (folder / "logs" / "train.log").read_text()
    return [line for line in text.splitlines() if "it is replaced" in line]


def test_it_is_told_once_how_far_the_other_had_come(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trainer(tmp_path).train()
    assert told(tmp_path) == []
    trainer(tmp_path, overwrite_output_dir=True).train()
    (line,) = told(tmp_path)
    wanted = f"{tmp_path} held a run that had finished at step 12 of 12; it is replaced (overwrite_output_dir)"
    assert " INFO " in line and line.endswith(wanted)
    assert [each.getMessage() for each in caplog.records].count(wanted) == 1


def test_an_unfinished_one_is_a_warning(tmp_path: Path) -> None:
    trainer(tmp_path, callbacks=[StopsAfter(5)]).train()
    path = tmp_path / "journal.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for name, words in (("interrupted", "had stopped at step 5 of 12"), ("failed", "had failed at step 5 of 12")):
        events = [{**line, "event": name} if line["event"] == "end" else line for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in events))
        assert replaced(tmp_path, overwrite=False) == (30, f"{tmp_path} held a run that {words}; it is replaced")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line["event"] != "end"))
    trainer(tmp_path, overwrite_output_dir=True).train()
    (line,) = told(tmp_path)
    assert " WARNING " in line and "had been killed after step 5 of 12" in line


@pytest.mark.parametrize("journal", [b"", b"\xff\n[]\n{\n", b'{"event": "start"}\n', b'{"event": "end", "step": 3}\n'])
def test_damage_does_not_keep_a_run_from_beginning(tmp_path: Path, journal: bytes) -> None:
    assert replaced(tmp_path / "new", overwrite=True) is None
    (tmp_path / "journal.jsonl").write_bytes(journal)
    (tmp_path / "stats").mkdir()
    (tmp_path / "stats" / "progress.json").write_bytes(b"[")
    (tmp_path / "stats" / "history.jsonl").mkdir()
    (tmp_path / "checkpoint-5").mkdir()
    trainer(tmp_path, overwrite_output_dir=True).train()
    assert len(told(tmp_path)) == 1


def test_a_folder_of_somebody_else_is_told_of_too(tmp_path: Path) -> None:
    (tmp_path / "stats").mkdir()
    level, line = replaced(tmp_path, overwrite=True) or (0, "")
    assert level == logging.WARNING and "another run, which cannot be read" in line
