"""A result appears as a whole or not at all, and takes the place of nothing that somebody needs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from morphing_trainer.checkpoint import verify
from morphing_trainer.errors import ConfigError, StorageError
from morphing_trainer.lora import save_model
from morphing_trainer.offline.place import appearing, check_place, check_room
from tests.offline.common import applied
from tests.support import tiny_model

WIDER = {"name": "widen_mlp", "value": 2}

DYING = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from morphing_trainer.functional import parsed
from morphing_trainer.offline.applying import apply
from morphing_trainer.offline.descendants import Tensors
from morphing_trainer.offline.source import open_source

class Dying(Tensors):
    def __init__(self, old):
        super().__init__(old.shapes)
        self.old, self.count = old, 0
    def __getitem__(self, name):
        self.count += 1
        if self.count == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.old[name]

source = open_source(sys.argv[1])
apply(replace(source, tensors=Dying(source.tensors)), [parsed({"name": "widen_mlp", "value": 2})], Path(sys.argv[2]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tiny_model(), tmp_path / "in")
    return tmp_path / "in"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_killed_process_leaves_no_half_model_and_the_next_one_tidies_up(folder: Path, tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", DYING, folder, tmp_path / "out"], env=env, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".morph-staging-out-*")
    assert (left / "model.safetensors").exists() and not (tmp_path / "out").exists()
    applied(folder, tmp_path / "out", WIDER)
    assert names(tmp_path) == ["in", "out"]
    verify(tmp_path / "out")


def test_what_another_process_still_writes_is_left_alone(tmp_path: Path) -> None:
    with appearing(tmp_path / "out", overwrite=False) as first:
        with pytest.raises(KeyboardInterrupt), appearing(tmp_path / "out", overwrite=False) as second:
            assert first.is_dir() and second != first
            raise KeyboardInterrupt
        assert first.is_dir()
    assert names(tmp_path) == ["out"]


def test_two_that_write_the_same_do_not_overwrite_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists"), appearing(tmp_path / "out", overwrite=False) as slow:
        (slow / "name").write_text("slow")
        with appearing(tmp_path / "out", overwrite=False) as fast:
            (fast / "name").write_text("fast")
    assert (tmp_path / "out/name").read_text() == "fast"
    assert names(tmp_path) == ["out"]


def test_one_that_was_moved_away_for_nothing_comes_back(folder: Path, tmp_path: Path) -> None:
    applied(folder, tmp_path / "out", WIDER)
    (tmp_path / "out").rename(tmp_path / ".morph-replaced-out")
    with pytest.raises(ConfigError, match="exists"):
        applied(folder, tmp_path / "out", WIDER)
    assert names(tmp_path) == ["in", "out"]


def test_a_model_is_replaced_only_on_demand(folder: Path, tmp_path: Path) -> None:
    applied(folder, tmp_path / "out", WIDER)
    before = (tmp_path / "out/manifest.json").read_bytes()
    with pytest.raises(ConfigError, match="exists; give another folder, or --overwrite"):
        applied(folder, tmp_path / "out", {"name": "widen_mlp", "value": 3})
    assert (tmp_path / "out/manifest.json").read_bytes() == before
    applied(folder, tmp_path / "out", {"name": "widen_mlp", "value": 3}, overwrite=True)
    verify(tmp_path / "out")
    assert (tmp_path / "out/manifest.json").read_bytes() != before
    assert names(tmp_path) == ["in", "out"]


def test_what_is_no_model_is_never_replaced(folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "letters").mkdir(parents=True)
    (home / "config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    for out, match in (
        (home, "something else"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "link", "where the model comes from"),
        (folder, "where the model comes from"),
        (tmp_path, "where the model comes from"),
        (tmp_path / "x" / "..", "a name of its own"),
        (tmp_path / ".hidden", "a name of its own"),
        (tmp_path / "a\0b", "NUL"),
    ):
        with pytest.raises(ConfigError, match=match):
            check_place(out, folder, overwrite=True)


def test_want_of_room_is_told_before(tmp_path: Path) -> None:
    check_room(tmp_path / "a/b/out", 1)
    with pytest.raises(StorageError, match="make room"):
        check_room(tmp_path / "a/b/out", 10**18)
    assert names(tmp_path) == []
