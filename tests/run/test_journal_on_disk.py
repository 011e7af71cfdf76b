"""A line of the journal is on the disk before the run goes on from it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from morphing_trainer.run.journal import Journal


def test_every_event_is_brought_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced, real = tmp_path / "journal.jsonl", [], os.fsync

    def fsync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        synced.append((found.st_ino, found.st_size))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for step in (1, 2):
        Journal(path).write("evaluation", step, loss=1.0)
        assert synced[-1] == (path.stat().st_ino, path.stat().st_size)
    assert len({size for _, size in synced}) == 2
