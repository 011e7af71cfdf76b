from __future__ import annotations

from pathlib import Path

import pytest

from morphing_trainer.errors import ConfigError
from morphing_trainer.run.folder import check_output_dir, clear, locked, traces

RUN = ["checkpoint-10", "checkpoint-20", "journal.jsonl", "logs", "loss.png", "model"]


def fill(folder: Path) -> None:
    """A run's folder, with things in it that are not the run's."""
    for name in ("checkpoint-10", "checkpoint-20", "logs", "model", "mine"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").touch()
    for name in ("journal.jsonl", "loss.png", "notes.txt"):
        (folder / name).touch()


def test_a_run_is_known_by_its_traces(tmp_path: Path) -> None:
    assert traces(tmp_path / "none") == []
    assert traces(tmp_path) == []
    fill(tmp_path)
    assert traces(tmp_path) == RUN


def test_a_folder_that_holds_another_run_is_refused(tmp_path: Path) -> None:
    for free in (tmp_path / "none", tmp_path):
        check_output_dir(free, resume=False, overwrite=False)
    fill(tmp_path)
    with pytest.raises(ConfigError, match=r"holds another run \(checkpoint-10, checkpoint-20, journal.jsonl, logs, "):
        check_output_dir(tmp_path, resume=False, overwrite=False)
    check_output_dir(tmp_path, resume=True, overwrite=False)
    check_output_dir(str(tmp_path), resume=False, overwrite=True)
    assert traces(tmp_path) == RUN  # asking changes nothing


def test_other_people_s_files_are_no_run(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "my-checkpoint").mkdir()
    check_output_dir(tmp_path, resume=False, overwrite=False)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    for resume in (True, False):
        with pytest.raises(ConfigError, match="is a file; give a folder"):
            check_output_dir(path, resume=resume, overwrite=True)


def test_clear_deletes_the_run_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path / "run")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    (tmp_path / "run" / "checkpoint-30").symlink_to(outside)
    (tmp_path / "run" / "checkpoint-40").symlink_to(tmp_path / "nowhere")
    clear(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["mine", "notes.txt"]
    assert (outside / "file").exists()
    clear(tmp_path / "run")
    clear(tmp_path / "none")


def test_a_folder_that_is_in_use_is_refused(tmp_path: Path) -> None:
    lock = locked(tmp_path / "run")
    with pytest.raises(ConfigError, match="another process is training in"):
        locked(tmp_path / "run")
    lock.release()
    locked(tmp_path / "run").release()


@pytest.mark.parametrize("name", ["model", "logs", "stats"])
def test_what_no_run_has_left_is_never_overwritten(tmp_path: Path, name: str) -> None:
    """Somebody else's folder may hold names like ours; neither `overwrite` nor `resume` makes them ours."""
    (tmp_path / name).mkdir()
    for options in ({"resume": False, "overwrite": True}, {"resume": True, "overwrite": False}):
        with pytest.raises(ConfigError, match=f"holds {name}, which no run of this library has left there"):
            check_output_dir(tmp_path, **options)
