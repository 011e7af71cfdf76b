"""A save may be interrupted anywhere. A failure is injected at every file operation; then real processes are killed."""

from __future__ import annotations

import errno
import io
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from morphing_trainer import checkpoint as package
from morphing_trainer.checkpoint import checkpoints, latest_valid, prune, publish, staging_folder, sweep, write_manifest

NAMES = ("model.bin", "optimizer.bin", "ranks/rng.json")
OPERATIONS = ("open", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "scandir", "listdir", "stat", "lstat")


class Killed(BaseException):
    """The process is gone: nothing after it may have an effect."""


class FileSystem:
    """Counts the file operations below `root`; the `fail_at`-th (from 0) raises, and with `dead` all later ones too."""

    def __init__(self, root: Path, fail_at: int | None = None, dead: bool = False) -> None:
        self.root, self.fail_at, self.dead = str(root), fail_at, dead
        self.log: list[tuple[str, Any]] = []

    def step(self, operation: str, target: Any) -> None:
        at = len(self.log)
        self.log.append((operation, target))
        if self.fail_at is None or at < self.fail_at or (at > self.fail_at and not self.dead):
            return
        raise Killed if self.dead else OSError(errno.EIO, "injected", str(target))

    def wrap(self, operation: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(target: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(target, int):  # an open file: known by its inode, which renames do not change
                self.step(operation, os.fstat(target).st_ino)
            elif kwargs.get("dir_fd") is not None or str(target).startswith(self.root):
                self.step(operation, str(target))
            return function(target, *args, **kwargs)

        return wrapped

    @contextmanager
    def installed(self) -> Iterator[FileSystem]:
        with pytest.MonkeyPatch.context() as patch:
            for operation in OPERATIONS:
                patch.setattr(os, operation, self.wrap(operation, getattr(os, operation)))
            patch.setattr(io, "open", self.wrap("io.open", io.open))
            yield self


def save(run: Path, step: int, version: int) -> None:
    """A whole save. Each file is written in two parts, with a place to fail between them."""
    staging = staging_folder(run, f"checkpoint-{step}")
    (staging / "ranks").mkdir()
    for name in NAMES:
        with (staging / name).open("w") as file:
            file.write(f"version {version} ")
            file.flush()
            os.stat(staging / name)
            file.write(f"of {name}")
    write_manifest(staging)
    publish(staging, run / f"checkpoint-{step}")
    prune(run, keep=2)


def version_of(checkpoint: Path) -> int:
    """The version of all files of a checkpoint, each whole."""
    found = {name: (checkpoint / name).read_text() for name in NAMES}
    version = int(found["model.bin"].split()[1])
    assert found == {name: f"version {version} of {name}" for name in NAMES}
    return version


# step of the interrupted save, and the steps there before: new, replacing, with pruning, replacing an older one
CASES = {"new": (3, [2]), "replace": (2, [2]), "replace, two there": (3, [2, 3]), "prune": (4, [1, 2, 3])}


def prepare(run: Path, steps: list[int]) -> None:
    for step in steps:
        staging = staging_folder(run, f"checkpoint-{step}")
        (staging / "ranks").mkdir()
        for name in NAMES:
            (staging / name).write_text(f"version {step} of {name}")
        write_manifest(staging)
        publish(staging, run / f"checkpoint-{step}")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of real fsyncs wait for the disk, and no test can see them: the calls are still counted and failed."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("dead", [False, True], ids=["one error", "killed"])
@pytest.mark.parametrize("case", CASES)
def test_a_failure_at_every_file_operation_leaves_a_whole_checkpoint(tmp_path: Path, case: str, dead: bool) -> None:
    step, before = CASES[case]
    prepare(tmp_path / "count", before)
    with FileSystem(tmp_path / "count").installed() as counter:
        save(tmp_path / "count", step, 99)
    assert len(counter.log) > 30
    assert {"fsync", "rename", "mkdir", "io.open"} <= {operation for operation, _ in counter.log}
    outcomes = set()
    for fail_at in range(len(counter.log)):
        run = tmp_path / str(fail_at)
        prepare(run, before)
        with FileSystem(run, fail_at, dead).installed(), suppress(Killed, OSError):
            save(run, step, 99)
        if not dead:
            assert checkpoints(run)  # an error, unlike a kill, can be undone on the spot
        found = latest_valid(run, NAMES)
        assert found is not None, counter.log[fail_at]
        assert version_of(found) in (99, max(before)), counter.log[fail_at]
        outcomes.add(version_of(found))
        for checkpoint in checkpoints(run):
            version_of(checkpoint)  # no damaged one is ever seen, not even an older one
        sweep(run)
        assert {path.name[:11] for path in run.iterdir()} == {"checkpoint-"}, counter.log[fail_at]
        save(run, step, 100)  # and the run goes on
        assert version_of(run / f"checkpoint-{step}") == 100
    assert outcomes == {99, max(before)}


@pytest.mark.usefixtures("quick")
def test_without_recovery_the_sweep_would_fail(tmp_path: Path) -> None:
    """The negative control: between the two renames there is a moment in which only the recovery finds the old one."""
    prepare(tmp_path / "count", [2])
    with FileSystem(tmp_path / "count").installed() as counter:
        save(tmp_path / "count", 2, 99)
    unseen = 0
    for fail_at in range(len(counter.log)):
        run = tmp_path / str(fail_at)
        prepare(run, [2])
        with FileSystem(run, fail_at, dead=True).installed(), suppress(Killed):
            save(run, 2, 99)
        unseen += checkpoints(run) == []
    assert unseen > 0


def test_everything_is_on_the_disk_before_the_rename_and_the_rename_before_any_deletion(tmp_path: Path) -> None:
    run = tmp_path / "run"
    prepare(run, [2])
    with FileSystem(run).installed() as recorder:
        save(run, 2, 99)
    log = recorder.log
    final = run / "checkpoint-2"
    synced = {target: at for at, (operation, target) in enumerate(log) if operation == "fsync"}
    renames = [(at, target) for at, (operation, target) in enumerate(log) if operation == "rename"]
    aside, published = renames[0][0], renames[1][0]
    assert [target for _, target in renames[:2]] == [str(final), next(t for _, t in renames if "staging" in t)]
    manifest_synced = synced[(final / "manifest.json").stat().st_ino]
    for name in (*NAMES, "ranks"):
        assert synced[(final / name).stat().st_ino] < aside, name
    for name in NAMES:
        assert synced[(final / name).stat().st_ino] < manifest_synced, name
    assert manifest_synced < synced[final.stat().st_ino] < aside
    deletions = [at for at, (operation, _) in enumerate(log) if operation in ("unlink", "rmdir")]
    syncs_of_run = [at for at, entry in enumerate(log) if entry == ("fsync", run.stat().st_ino)]
    assert any(published < at < min(deletions) for at in syncs_of_run)


def test_a_new_checkpoint_is_on_the_disk_when_publish_returns(tmp_path: Path) -> None:
    with FileSystem(tmp_path).installed() as recorder:
        prepare(tmp_path, [1])
    operations = [entry for entry in recorder.log if entry[0] in ("rename", "fsync")]
    assert [operation for operation, _ in operations[-2:]] == ["rename", "fsync"]
    assert operations[-1] == ("fsync", tmp_path.stat().st_ino)


def test_a_new_run_folder_is_on_the_disk_too(tmp_path: Path) -> None:
    run = tmp_path / "a" / "run"
    with FileSystem(tmp_path).installed() as recorder:
        staging_folder(run, "checkpoint-1")
    assert {("fsync", folder.stat().st_ino) for folder in (tmp_path, tmp_path / "a")} <= set(recorder.log)


def test_a_deletion_is_on_the_disk_before_any_file_goes(tmp_path: Path) -> None:
    """Else a crash could leave a checkpoint under its own name with some of its files."""
    prepare(tmp_path, [1, 2, 3])
    with FileSystem(tmp_path).installed() as recorder:
        prune(tmp_path, keep=2)
    log = recorder.log
    renamed = next(at for at, entry in enumerate(log) if entry == ("rename", str(tmp_path / "checkpoint-1")))
    gone = min(at for at, (operation, _) in enumerate(log) if operation in ("unlink", "rmdir"))
    assert ("fsync", tmp_path.stat().st_ino) in log[renamed:gone]


CHILD = """
    import sys
    from pathlib import Path
    sys.path[:0] = [{root!r}, {tests!r}]
    from test_crash import save, sweep
    run, version = Path(sys.argv[1]), int(sys.argv[2])
    sweep(run)
    while True:
        version += 1
        save(run, version // 3, version)  # each step three times: new, replaced, replaced
        print(version, flush=True)
"""


def test_processes_killed_at_random(tmp_path: Path) -> None:
    draw = random.Random(0)
    root = str(Path(package.__file__).parents[2])
    child = textwrap.dedent(CHILD).format(root=root, tests=str(Path(__file__).parent))
    version = 0
    for _ in range(8):
        command = [sys.executable, "-c", child, str(tmp_path), str(version)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            acknowledged = int(process.stdout.readline())
            time.sleep(draw.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            for line in process.stdout.read().splitlines():
                acknowledged = int(line)
        assert process.returncode == -signal.SIGKILL
        found = latest_valid(tmp_path, NAMES)
        assert found is not None
        for checkpoint in checkpoints(tmp_path):
            version_of(checkpoint)
        # The one that was reported as saved, or the one that was being saved.
        assert version_of(found) in (acknowledged, acknowledged + 1)
        version = version_of(found)
