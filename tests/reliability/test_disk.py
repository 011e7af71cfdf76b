"""A disk that is full, a folder that may not be written, or that goes: a clear end, and nothing good is lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from morphing_trainer.checkpoint import verify
from morphing_trainer.checkpoint.store import checkpoints
from morphing_trainer.run.journal import read_journal
from tests.reliability.nursery import Nursery
from tests.reliability.privileges import unprivileged
from tests.reliability.program import Crash, build, run

SLICE = 7


class Meddles(TrainerCallback):
    """Does something to the disk or the folder when a step begins."""

    def __init__(self, job: Crash, step: int, what: str) -> None:
        self.job, self.step, self.what = job, step, what
        self.limit: int | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != self.step:
            return
        folder = self.job.folder
        kind, _, number = self.what.partition(" ")
        if kind in ("largest", "deadly"):  # no file may become larger; SIGXFSZ is ignored by Python, which gets EFBIG
            if kind == "deadly":
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            null = os.open(os.devnull, os.O_WRONLY)  # the limit is for what is printed, too
            os.dup2(null, 1)
            os.dup2(null, 2)
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(number), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        elif kind == "removed":
            shutil.rmtree(folder)
        elif kind == "replaced":
            shutil.rmtree(folder)
            folder.write_text("no folder")
        elif kind == "locked":
            folder.chmod(0o555)
        elif kind == "filled":
            with suppressing_full(folder / "filling") as file:
                while True:
                    file.write(b"0" * 4096)


class suppressing_full:
    """A file that is written until there is no room."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb", buffering=0)

    def __enter__(self) -> Any:
        return self.file

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        self.file.close()
        return isinstance(error, OSError)


def meddled(job: Crash, step: int, what: str) -> None:
    """In the process: a run whose disk or folder is meddled with in front of step `step + 1`."""
    told: dict[str, Any] = {"error": None}
    with unprivileged():
        try:
            build(job, Meddles(job, step, what)).train(job.resume)
        except Exception as error:
            told = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    soft = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, soft))
    job.report.write_text(json.dumps(told))


def perform(nursery: Nursery, job: Crash, step: int, what: str) -> tuple[int | None, str | None]:
    """Exit code of such a run, and the error that it ended with."""
    job.report.unlink(missing_ok=True)
    code = nursery.start(meddled, job, step, what, log=job.log).code()
    return code, json.loads(job.report.read_text())["error"] if job.report.exists() else None


@pytest.fixture(scope="module")
def whole(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Crash:
    job = Crash(tmp_path_factory.mktemp("whole") / "run")
    assert nursery.start(run, job, log=job.log).code() == 0
    return job


def resumes(nursery: Nursery, job: Crash, whole: Crash) -> None:
    """What is left is sound, and what goes on from it ends as the run that nobody meddled with."""
    for checkpoint in checkpoints(job.folder):
        verify(checkpoint)
    again = Crash(job.folder, "if possible", options=job.options)
    assert nursery.start(run, again, log=again.log).code() == 0, again.log.read_text()[-3000:]
    told = again.told()
    assert told["error"] is None
    assert told["after"] == whole.told()["after"]


def sizes(whole: Crash) -> list[int]:
    """One byte too little for each file of the last checkpoint, and somewhat more: all the places to stop in."""
    found = sorted({path.stat().st_size for path in (whole.folder / "checkpoint-4").iterdir()})
    return sorted({limit for size in found for limit in (size // 3, size - 1)})


def full(nursery: Nursery, folder: Path, whole: Crash, kind: str, limits: list[int]) -> None:
    for limit in limits:
        job = Crash(folder / f"{kind}-{limit}")
        code, error = perform(nursery, job, 2, f"{kind} {limit}")
        assert [path.name for path in checkpoints(job.folder)] == ["checkpoint-2"], limit
        if kind == "deadly":
            assert code == -signal.SIGXFSZ, (limit, job.log.read_text()[-3000:])
        else:
            assert code == 0, job.log.read_text()[-3000:]
            assert error is not None, limit
            assert error.startswith("StorageError: "), job.report.read_text()
            assert "checkpoint-2 is there; go on from it" in error or "journal cannot be written" in error, error
            assert not list(job.folder.glob(".morph-*")), "what was written of it goes: it would take up the room"
        resumes(nursery, job, whole)


@pytest.mark.parametrize("kind", ["largest", "deadly"])
def test_some_files_that_cannot_become_as_large_as_they_should(
    nursery: Nursery, tmp_path: Path, whole: Crash, kind: str
) -> None:
    """The system itself refuses a write, or ends the process in it: also one of torch's or safetensors'."""
    full(nursery, tmp_path, whole, kind, sizes(whole)[SLICE // 2 :: SLICE])


@pytest.mark.long
@pytest.mark.parametrize("kind", ["largest", "deadly"])
def test_every_file_that_cannot_become_as_large_as_it_should(
    nursery: Nursery, tmp_path: Path, whole: Crash, kind: str
) -> None:
    full(nursery, tmp_path, whole, kind, sizes(whole))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB. It takes root to make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(nursery: Nursery, small_disk: Path, tmp_path: Path, whole: Crash) -> None:
    """Not one byte is left. The run says so and ends; when there is room again it goes on."""
    job = Crash(small_disk / "run")
    job_log = Crash(tmp_path / "run").log
    code = nursery.start(meddled, Told(job.folder, tmp_path), 2, "filled", log=job_log).code()
    assert code == 0, job_log.read_text()[-3000:]
    error = json.loads((tmp_path / "told.json").read_text())["error"]
    assert error.startswith("StorageError: "), error
    assert "No space left on device" in error or "full disk" in error
    (small_disk / "run" / "filling").unlink()
    resumes(nursery, Told(job.folder, tmp_path), whole)


class Told(Crash):
    """A job whose report lies on another disk."""

    def __init__(self, folder: Path, elsewhere: Path, resume: bool | str = False) -> None:
        super().__init__(folder, resume)
        object.__setattr__(self, "elsewhere", elsewhere)

    elsewhere: Path

    @property
    def report(self) -> Path:
        return self.elsewhere / "told.json"


def test_a_folder_that_goes(nursery: Nursery, tmp_path: Path, whole: Crash) -> None:
    """Somebody removes it while the run goes on: it is made again, with the whole journal, and the run goes on."""
    job = Crash(tmp_path / "run")
    assert perform(nursery, job, 3, "removed") == (0, None)
    log = job.log.read_text()
    assert "journal.jsonl has been removed while the run goes on" in log
    assert [path.name for path in checkpoints(job.folder)] == ["checkpoint-4"]
    ours, theirs = (read_journal(each / "journal.jsonl") for each in (job.folder, whole.folder))
    assert [event["event"] for event in ours] == [event["event"] for event in theirs]
    assert ours[0]["event"] == "start"
    assert len((job.folder / "stats" / "history.jsonl").read_text().splitlines()) > 6, "of the beginning, too"
    resumes(nursery, job, whole)


def test_a_file_in_place_of_the_folder(nursery: Nursery, tmp_path: Path) -> None:
    job = Crash(tmp_path / "run")
    code, error = perform(nursery, job, 2, "replaced")
    assert code == 0
    assert error is not None
    assert error.startswith("StorageError: ")
    assert str(job.folder) in error
    assert job.folder.read_text() == "no folder"


def test_a_folder_that_becomes_read_only(nursery: Nursery, tmp_path: Path, whole: Crash) -> None:
    job = Crash(tmp_path / "run")
    code, error = perform(nursery, job, 2, "locked")
    job.folder.chmod(0o755)
    assert code == 0
    assert error is not None
    assert error.startswith("StorageError: ")
    assert "Permission denied" in error
    assert "checkpoint-2 is there" in error
    resumes(nursery, job, whole)


def test_a_folder_that_is_read_only(nursery: Nursery, tmp_path: Path) -> None:
    """Found before the first step."""
    (tmp_path / "kept").mkdir(mode=0o555)
    job = Crash(tmp_path / "kept" / "run")
    told = Told(job.folder, tmp_path)
    code = nursery.start(meddled, told, 99, "nothing", log=tmp_path / "log").code()
    (tmp_path / "kept").chmod(0o755)
    assert code == 0, (tmp_path / "log").read_text()[-3000:]
    error = json.loads(told.report.read_text())["error"]
    assert error.startswith("StorageError: output_dir: ")
    assert "Permission denied" in error
