"""A run fails, or dies, at every one of its file operations; what it leaves is whole, and what is resumed is exact."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from morphing_trainer.checkpoint import verify
from morphing_trainer.checkpoint.store import checkpoints
from tests.reliability.faults import How
from tests.reliability.nursery import Nursery
from tests.reliability.program import Crash, run

SLICE = 61
"""CI fails every so many-th operation: a prime, so that it is not the same one of each save."""

SCENES: dict[str, dict[str, Any]] = {
    "run": {},
    # Goes on from an earlier checkpoint than the last: one is replaced and one goes.
    "again": {"options": {"save_steps": 1}},
    # Two threads write, so that the same number need not be the same operation every time.
    "async": {"options": {"async_save": True}},
}


class Stage:
    """Where the runs of one scene begin, and how they go when nothing fails."""

    def __init__(self, nursery: Nursery, folder: Path, scene: str) -> None:
        self.nursery, self.folder, self.scene = nursery, folder, scene
        self.before: Path | None = None
        if scene == "again":
            first = Crash(folder / "first")
            assert self.perform(first) == 0
            self.before = first.folder
        self.whole = self.crash("whole", at=None)
        assert self.perform(self.whole) == 0, self.whole.log.read_text()[-3000:]
        self.told = self.whole.told()
        assert self.told["error"] is None

    def crash(self, name: str, at: int | None, how: How = "error") -> Crash:
        folder = self.folder / name
        resume: bool | str = False
        if self.before is not None:
            shutil.copytree(self.before, folder)
            resume = str(folder / "checkpoint-2")
        return Crash(folder, resume, at, how, SCENES[self.scene].get("options", {}))

    def perform(self, job: Crash) -> int | None:
        return self.nursery.start(run, job, log=job.log).code()

    def fail(self, at: int, how: How) -> str:
        """Make the `at`-th operation fail, look at what is left, go on, and compare. Returns what became of the run."""
        point = self.told["points"][at]
        job = self.crash(f"{at}-{how}", at, how)
        code = self.perform(job)
        found = "died"
        if how == "error":
            assert code == 0, (point, job.log.read_text()[-3000:])
            told = job.told()
            assert len(told["points"]) > at, point
            found = "ended" if told["error"] else "went on"
            if told["error"]:
                assert told["is_ours"], (point, told["error"])
                assert "injected" in told["error"] or "Input/output" in told["error"], (point, told["error"])
            # As it was after the last step, or after the operation that followed it: nothing is half done.
            assert told["after"] is None or told["after"] in self.told["pages"], point
            assert told["pages"] == self.told["pages"][: len(told["pages"])], point
        else:
            assert code == -9, (point, code)
        for checkpoint in checkpoints(job.folder):
            verify(checkpoint)
        again = Crash(job.folder, "if possible", options=job.options)
        assert self.perform(again) == 0, (point, again.log.read_text()[-3000:])
        told = again.told()
        assert told["error"] is None, (point, told["error"])
        assert told["after"] == self.told["after"], point
        assert told["losses"] == self.told["losses"], point
        for checkpoint in checkpoints(job.folder):
            verify(checkpoint)
        left = [path.name for path in job.folder.iterdir() if path.name.startswith(".morph")]
        assert not left, (point, left)
        shutil.rmtree(job.folder)
        return found


def sweep(stage: Stage, points: Sequence[int], hows: Sequence[How]) -> dict[str, int]:
    """Every failure, and how often each thing became of the run. All that went wrong is told together."""
    outcomes: dict[str, int] = {}
    wrong = []
    for how in hows:
        for at in points:
            try:
                outcome = stage.fail(at, how)
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
            except Exception as error:
                wrong.append(f"{how} at {at}: {str(error)[:1500]}")
    assert not wrong, f"{len(wrong)} of {len(points) * len(hows)}:\n" + "\n".join(wrong[:40])
    return outcomes


@pytest.mark.parametrize("scene", SCENES)
def test_a_slice(nursery: Nursery, tmp_path: Path, scene: str) -> None:
    stage = Stage(nursery, tmp_path, scene)
    kinds = {point.split()[0] for point in stage.told["points"]}
    assert {"open", "write", "os.fsync", "os.rename", "os.mkdir"} <= kinds
    if scene == "again":
        assert {"shutil.rmtree", "os.remove", "os.rmdir"} <= kinds
    count = len(stage.told["points"])
    sweep(stage, range(7, count, SLICE), ["error"])
    sweep(stage, range(SLICE // 2, count, SLICE), ["death"])


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("how", ["error", "death"])
@pytest.mark.parametrize("scene", SCENES)
def test_every_operation(nursery: Nursery, tmp_path: Path, scene: str, how: How, part: int) -> None:
    stage = Stage(nursery, tmp_path, scene)
    points = range(part, len(stage.told["points"]), 4)
    print(f"{scene}, {how}: {len(points)} points, {sweep(stage, points, [how])}")
