"""What lies beside the checkpoints may be damaged, too: a resume goes on as exactly, and says what was wrong."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from morphing_trainer import MorphingTrainer
from morphing_trainer.errors import MorphError
from morphing_trainer.run.journal import effective, read_journal
from tests.reliability.test_corruption import made
from tests.support import losses, same, weights
from tests.trainer.common import StopsAfter
from tests.trainer.conftest import _frozen_imports, _no_picture  # noqa: F401  # fixtures, for speed

EVENTS = ("operation", "evaluation")


def operations(folder: Path) -> list[Any]:
    """What the journal knows of the run as it is, without times."""
    found = []
    for event in effective(read_journal(folder / "journal.jsonl")):
        if event["event"] in EVENTS:
            record = {key: value for key, value in event.get("record", {}).items() if key != "seconds"}
            found.append((event["event"], event["index"], event.get("loss"), record, event.get("spec")))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> MorphingTrainer:
    run = made("plain", tmp_path_factory.mktemp("whole") / "run")
    run.train()
    return run


@pytest.fixture(scope="module")
def halted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped after step 3."""
    folder = tmp_path_factory.mktemp("halted") / "run"
    run = made("plain", folder)
    run.add_callback(StopsAfter(3))
    run.train()
    return folder


def garbage_in_the_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20] = bytes(range(120, 140))  # no UTF-8
    path.write_bytes(data)


def a_line_less(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:1] + lines[2:]))


def of_another_run(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"seed": 7', b'"seed": 8'))


JOURNALS: dict[str, tuple[Callable[[Path], object], bool]] = {
    "missing": (lambda path: path.unlink(), False),
    "cut in its last line": (lambda path: path.write_bytes(path.read_bytes()[:-9]), False),
    "empty": (lambda path: path.write_bytes(b""), True),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:300]), True),
    "garbage in the middle": (garbage_in_the_middle, True),
    "all garbage": (lambda path: path.write_bytes(b"\0\xff" * 500), True),
    "a line less": (a_line_less, True),
    "of another run": (of_another_run, True),
    "folder": (lambda path: (path.unlink(), path.mkdir()), True),
}


@pytest.mark.parametrize("damage", JOURNALS)
def test_the_journal(
    whole: MorphingTrainer, halted: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint has a copy, so nothing of the run as it is gets lost; what was found is put aside and told."""
    folder = shutil.copytree(halted, tmp_path / "run")
    hurt, is_told = JOURNALS[damage]
    hurt(folder / "journal.jsonl")
    run = made("plain", folder)
    with caplog.at_level(logging.WARNING, "morphing_trainer"):
        run.train(True)
    assert same(weights(run), weights(whole))
    assert losses(run) == losses(whole)
    assert operations(folder) == operations(whole.run_folder)
    assert len(operations(folder)) > 2
    aside = [path.name for path in folder.glob("journal-damaged-*")]
    if is_told:
        (warning,) = caplog.messages
        assert str(folder / "journal.jsonl") in warning
        assert aside == ["journal-damaged-1.jsonl"]
        assert aside[0] in warning
    else:
        assert caplog.messages == []
        assert aside == []
    made("plain", folder).train(True)  # what was saved since has a sound copy


class Scribbles(StopsAfter):
    """Writes into the journal of the running run."""

    def __init__(self, path: Path) -> None:
        super().__init__(3)
        self.path = path

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            with self.path.open("a") as file:
                file.write("what is this?\n")


def test_damage_to_the_journal_does_not_spread_into_checkpoints(
    whole: MorphingTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else every later checkpoint, all of them sound, could not be resumed from."""
    run = made("plain", tmp_path)
    run.add_callback(Scribbles(tmp_path / "journal.jsonl"))
    with caplog.at_level(logging.WARNING, "morphing_trainer"):
        run.train()
    assert any("journal.jsonl:" in message and "leaves it out" in message for message in caplog.messages)
    read_journal(tmp_path / "checkpoint-3" / "journal.jsonl")
    again = made("plain", tmp_path)
    again.train(True)
    assert same(weights(again), weights(whole))
    assert operations(tmp_path) == operations(whole.run_folder)


def in_place_of(path: Path, content: str | None = None) -> None:
    """A folder, or a file, in place of whatever is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.mkdir() if content is None else path.write_text(content)


BESIDE: dict[str, Callable[[Path], object]] = {
    "statistics are garbage": lambda folder: [
        path.write_bytes(b"\0\xff" * 50) for path in (folder / "stats").iterdir()
    ],
    "no statistics": lambda folder: shutil.rmtree(folder / "stats"),
    "a file for the statistics": lambda folder: in_place_of(folder / "stats", "no folder"),
    "a folder for the history": lambda folder: in_place_of(folder / "stats" / "history.jsonl"),
    "garbage in the lock": lambda folder: in_place_of(folder / ".lock", "4711"),
    "no log": lambda folder: shutil.rmtree(folder / "logs"),
    "a folder for the picture": lambda folder: in_place_of(folder / "loss.png"),
}


@pytest.mark.parametrize("damage", BESIDE)
def test_what_a_resume_does_not_need(whole: MorphingTrainer, halted: Path, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(halted, tmp_path / "run")
    BESIDE[damage](folder)
    run = made("plain", folder)
    run.train(True)
    assert same(weights(run), weights(whole))
    assert losses(run) == losses(whole)


REFUSED: dict[str, Callable[[Path], object]] = {
    "a folder for the lock": lambda folder: in_place_of(folder / ".lock"),
    "a file for the logs": lambda folder: in_place_of(folder / "logs", "no folder"),
}


@pytest.mark.parametrize("damage", REFUSED)
def test_what_is_in_the_way_is_named(halted: Path, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(halted, tmp_path / "run")
    BESIDE.get(damage, REFUSED[damage])(folder)
    with pytest.raises(MorphError, match=r"\.lock|logs"):
        made("plain", folder).train(True)
    assert {path.name for path in folder.glob("checkpoint-*")} == {path.name for path in halted.glob("checkpoint-*")}


def test_what_killed_saves_leave_behind(whole: MorphingTrainer, halted: Path, tmp_path: Path) -> None:
    """Staging folders go, a checkpoint whose replacement never came returns, and half a deletion is completed."""
    folder = shutil.copytree(halted, tmp_path / "run")
    shutil.copytree(folder / "checkpoint-2", folder / ".morph-staging-checkpoint-4-0123456789abcdef" / "checkpoint-4")
    (folder / "checkpoint-3").rename(folder / ".morph-replaced-checkpoint-3")
    deleted = shutil.copytree(folder / "checkpoint-1", folder / ".morph-deleted-checkpoint-0-0123456789abcdef")
    (deleted / "manifest.json").unlink()
    run = made("plain", folder)
    run.train(True)
    (resumed,) = [event for event in read_journal(folder / "journal.jsonl") if event["event"] == "resume"]
    assert resumed["checkpoint"] == "checkpoint-3"
    assert not list(folder.glob(".morph-*"))
    assert same(weights(run), weights(whole))
