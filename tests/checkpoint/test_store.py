from __future__ import annotations

import logging
import os
import shutil
import stat
from pathlib import Path

import pytest

from morphing_trainer.checkpoint import (
    checkpoints,
    latest_valid,
    prune,
    publish,
    staging_folder,
    store,
    sweep,
    verify,
    write_manifest,
)
from morphing_trainer.errors import CheckpointError


def save(run: Path, step: int, text: str = "") -> Path:
    staging = staging_folder(run, f"checkpoint-{step}")
    (staging / "model.bin").write_text(text or f"step {step}")
    write_manifest(staging)
    final = run / f"checkpoint-{step}"
    publish(staging, final)
    return final


def names(run: Path) -> set[str]:
    return {path.name for path in run.iterdir()}


def test_staging_folder_is_fresh_hidden_and_as_readable_as_any(tmp_path: Path) -> None:
    run = tmp_path / "a" / "run"
    one, other = staging_folder(run, "checkpoint-5"), staging_folder(run, "checkpoint-5")
    (tmp_path / "plain").mkdir()
    assert one != other and one.parent == other.parent == run
    assert one.name.startswith(".") and not list(one.iterdir())
    assert stat.S_IMODE(one.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert checkpoints(run) == []


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/a"])
def test_names_that_are_no_folder_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="is not a folder name"):
        staging_folder(tmp_path, name)


def test_publish_and_replace(tmp_path: Path) -> None:
    final = save(tmp_path, 5, "old")
    verify(final, ["model.bin"])
    assert save(tmp_path, 5, "new") == final
    verify(final, ["model.bin"])
    assert (final / "model.bin").read_text() == "new"
    assert names(tmp_path) == {"checkpoint-5"}


def test_publish_needs_a_manifest_and_a_free_or_replaceable_name(tmp_path: Path) -> None:
    staging = staging_folder(tmp_path, "checkpoint-1")
    with pytest.raises(CheckpointError, match=r"has no manifest\.json"):
        publish(staging, tmp_path / "checkpoint-1")
    write_manifest(staging)
    with pytest.raises(CheckpointError, match="is not a folder name"):
        publish(staging, tmp_path / ".checkpoint-1")
    (tmp_path / "checkpoint-1").write_text("a file")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoint-2").symlink_to(tmp_path / "elsewhere")
    for name in ("checkpoint-1", "checkpoint-2"):
        with pytest.raises(CheckpointError, match="is in the way and is not a folder"):
            publish(staging, tmp_path / name)
    assert staging.is_dir()


def test_checkpoints_are_real_folders_by_step(tmp_path: Path) -> None:
    assert checkpoints(tmp_path / "absent") == []
    for name in ("checkpoint-9", "checkpoint-100", "checkpoint-20", "checkpoint-0"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint-", "checkpoint-07", "checkpoint-1a", "checkpoint-٣", "xcheckpoint-1", ".checkpoint-1"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-5").write_text("a file")
    (tmp_path / "checkpoint-6").symlink_to(tmp_path / "checkpoint-9")
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (100, 20, 9, 0)]


def test_latest_valid_falls_back_and_names_the_bad_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert latest_valid(tmp_path / "absent") is None
    for step in (10, 20, 100):
        save(tmp_path, step)
    with caplog.at_level(logging.WARNING, "morphing_trainer"):
        assert latest_valid(tmp_path, ["model.bin"]) == tmp_path / "checkpoint-100"
        assert caplog.records == []
        (tmp_path / "checkpoint-100" / "model.bin").write_text("stop 100")
        (tmp_path / "checkpoint-20" / "manifest.json").unlink()
        assert latest_valid(tmp_path, ["model.bin"]) == tmp_path / "checkpoint-10"
    first, second = (record.getMessage() for record in caplog.records)
    assert "checkpoint-100 is damaged" in first and str(tmp_path / "checkpoint-100" / "model.bin") in first
    assert "checkpoint-20 is damaged" in second and str(tmp_path / "checkpoint-20" / "manifest.json") in second
    assert latest_valid(tmp_path, ["optimizer.bin"]) is None
    assert len(checkpoints(tmp_path)) == 3  # damaged ones are left to be looked at


def test_an_interrupted_replacement_is_brought_back(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (tmp_path / "checkpoint-5").rename(tmp_path / f"{store.REPLACED}checkpoint-5")
    assert checkpoints(tmp_path) == []
    assert latest_valid(tmp_path) == tmp_path / "checkpoint-5"
    assert names(tmp_path) == {"checkpoint-5"}


def test_prune_keeps_the_newest_and_the_protected(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10, 20):
        save(tmp_path, step)
    assert prune(tmp_path, keep=2, protect=[tmp_path / "checkpoint-2"]) == [
        tmp_path / "checkpoint-3",
        tmp_path / "checkpoint-1",
    ]
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-10", "checkpoint-20"}
    assert prune(tmp_path, keep=3) == []
    with pytest.raises(CheckpointError, match="cannot keep only 1"):
        prune(tmp_path, keep=1)


def test_what_cannot_be_deleted_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)

    def stuck(*_: object) -> None:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(shutil, "rmtree", stuck)
    prune(tmp_path, keep=2)
    assert "takes up disk space: [Errno 16]" in caplog.text
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-2"]
    monkeypatch.setattr(os, "rename", stuck)
    save_old = tmp_path / "checkpoint-1"
    save_old.mkdir()
    assert prune(tmp_path, keep=2) == [] and save_old.exists()


def test_a_half_done_deletion_is_never_seen_as_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)

    def killed(path: Path) -> None:
        (path / "model.bin").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        prune(tmp_path, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-2"]
    assert len(sweep(tmp_path)) == 1
    assert names(tmp_path) == {"checkpoint-3", "checkpoint-2"}


def test_sweep_removes_only_our_leftovers(tmp_path: Path) -> None:
    assert sweep(tmp_path / "absent") == []
    save(tmp_path, 5)
    (staging_folder(tmp_path, "checkpoint-6") / "model.bin").write_text("half")
    for prefix in (store.REPLACED, store.DELETED):
        (tmp_path / f"{prefix}checkpoint-5").mkdir()
    (tmp_path / store.REPLACED).mkdir()
    (tmp_path / f"{store.REPLACED}checkpoint-4").mkdir()  # nothing took its place: it comes back
    kept = [".git", "logs", "checkpoint-notes"]
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / f"{store.STAGING}link").symlink_to(tmp_path / "logs")
    (tmp_path / f"{store.STAGING}file").write_text("not a folder of ours")
    assert len(sweep(tmp_path)) == 4
    expected = {"checkpoint-5", "checkpoint-4", *kept, f"{store.STAGING}link", f"{store.STAGING}file"}
    assert names(tmp_path) == expected
    assert sweep(tmp_path) == []
