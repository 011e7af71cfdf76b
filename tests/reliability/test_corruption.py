"""Every file of a checkpoint, damaged in every way: found, named, and passed over for exactly the checkpoint before."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from morphing_trainer import LoraArguments, MorphingTrainer, add_adapters
from morphing_trainer.checkpoint import MANIFEST, verify
from morphing_trainer.errors import CheckpointError
from morphing_trainer.run.consensus import Consensus
from tests.reliability.privileges import unprivileged
from tests.support import Tokens, tiny_model, trainer
from tests.trainer.common import entry
from tests.trainer.conftest import _frozen_imports, _no_picture  # noqa: F401  # fixtures, for speed
from tests.trainer.program import Job, complete

SCHEDULE = [entry("freeze_layer", "wpe", 1), entry("stack_layers", 2, 1)]
OPTIONS: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 9}
LAST, BEFORE, OTHER = "checkpoint-4", "checkpoint-3", "checkpoint-2"

Damage = Callable[[Path], object]


def flipped(place: float) -> Damage:
    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int(place * (len(data) - 1))] ^= 1 << int(place * 7)
        path.write_bytes(data)

    return flip


def exchanged(path: Path) -> None:
    path.write_bytes((path.parent.with_name(OTHER) / path.name).read_bytes())


def linked(path: Path) -> None:
    """To a file with the same content, which is not part of the checkpoint and may change any time."""
    kept = path.parent.with_name("elsewhere")
    path.rename(kept)
    path.symlink_to(kept)


def hung(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    """Who opened it would wait for ever."""
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, Damage] = {
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "first bit flipped": flipped(0),
    "a bit flipped": flipped(0.5),
    "last bit flipped": flipped(1),
    "empty": lambda path: path.write_bytes(b""),
    "of another step": exchanged,
    "link": linked,
    "dangling link": hung,
    "folder": a_folder,
    "pipe": a_pipe,
    "unreadable": lambda path: path.chmod(0),
}


def made(kind: str, folder: Path, **changes: Any) -> MorphingTrainer:
    model = tiny_model()
    if kind == "lora":
        model = add_adapters(model, LoraArguments(4, 4))  # type: ignore[assignment]
    options = {"analysis_evals": 1, "eval_steps": 1} if kind == "lora" else {}
    return trainer(folder, SCHEDULE, model, data=Tokens(41), **{**OPTIONS, **options, **changes})


@dataclass(frozen=True)
class Kind:
    """A run that has been saved at every step."""

    name: str
    folder: Path

    @property
    def files(self) -> list[str]:
        last = self.folder / LAST
        return sorted(path.relative_to(last).as_posix() for path in last.rglob("*") if path.is_file())


@pytest.fixture(
    scope="module", params=["lora", *(pytest.param(name, marks=pytest.mark.long) for name in ("plain", "processes"))]
)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    folder = tmp_path_factory.mktemp("kinds") / request.param
    if request.param == "processes":
        complete(Job(folder, SCHEDULE, options=OPTIONS), processes=2)
    else:
        made(request.param, folder).train()
    return Kind(request.param, folder)


def at_rest() -> None:
    """Wait for threads that read ahead: a file that is cut while it is mapped ends the process."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.name.startswith("reading"):
            thread.join()


@contextmanager
def damaged(folder: Path, name: str, damage: Damage) -> Iterator[None]:
    """The newest checkpoint with one damaged file, and as it was afterwards."""
    path = folder / LAST / name
    kept = path.read_bytes()
    damage(path)
    try:
        yield
    finally:
        at_rest()
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        path.write_bytes(kept)


def test_the_files_are_those_that_a_resume_reads(kind: Kind) -> None:
    expected = {MANIFEST, "morph_state.json", "journal.jsonl", "config.json", "model.safetensors", "optimizer.pt"}
    expected |= {"scheduler.pt", "trainer_state.json", "training_args.bin", "generation_config.json"}
    expected |= {
        "plain": {"rng_state.pth"},
        "lora": {"rng_state.pth", "adapter_config.json", "adapter_model.safetensors", "analysis.safetensors"},
        "processes": {"rng_state_0.pth", "rng_state_1.pth"},
    }[kind.name]
    assert set(kind.files) == expected


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_file(kind: Kind, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    for step in (OTHER, BEFORE, LAST):
        shutil.copytree(kind.folder / step, folder / step)
    run = made(kind.name, folder)
    sound = json.loads((folder / BEFORE / "morph_state.json").read_text())["state"]
    unchanged = []
    for name in kind.files:
        before = (folder / LAST / name).read_bytes()
        with damaged(folder, name, DAMAGES[damage]), unprivileged():
            path = folder / LAST / name
            same = damage == "of another step" and path.read_bytes() == before
            if same or (damage == "a byte short" and before == path.read_bytes() + b"\n" and name == MANIFEST):
                unchanged.append(name)
                continue
            caplog.clear()
            with caplog.at_level(logging.WARNING, "morphing_trainer"):
                bundle = run.find_bundle(True, Consensus())
            assert bundle is not None
            assert bundle.path.name == BEFORE, name
            assert bundle.state == sound, name
            (warning,) = caplog.messages
            assert f"{LAST} is damaged and is passed over" in warning
            # A manifest that speaks of other files is found by the first of them that does not fit.
            assert name in warning or (name == MANIFEST and any(each in warning for each in kind.files)), warning
            with pytest.raises(CheckpointError) as caught:
                run.find_bundle(str(folder / LAST), Consensus())
            assert name in str(caught.value) or (name == MANIFEST and str(folder / LAST) in str(caught.value))
    if damage == "of another step":
        assert {"model.safetensors", "optimizer.pt", "morph_state.json", MANIFEST}.isdisjoint(unchanged)
    verify(folder / LAST)
    found = run.find_bundle(True, Consensus())
    assert found is not None
    assert found.path.name == LAST, "a sound one is taken"


def bits_of_the_manifest(folder: Path, every: int) -> int:
    """Flip every so many-th bit of a manifest: `verify` must object to each. Returns how many there were."""
    path = folder / MANIFEST
    sound = path.read_bytes()
    bits = range(0, 8 * len(sound), every)
    for bit in bits:
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            verify(folder)
        assert str(folder) in str(caught.value)
    path.write_bytes(sound)
    verify(folder)
    return len(bits)


def test_bits_of_the_manifest(kind: Kind, tmp_path: Path) -> None:
    assert bits_of_the_manifest(shutil.copytree(kind.folder / LAST, tmp_path / LAST), 97) > 100


@pytest.mark.long
def test_every_bit_of_the_manifest(kind: Kind, tmp_path: Path) -> None:
    folder = shutil.copytree(kind.folder / LAST, tmp_path / LAST)
    print(f"{kind.name}: {bits_of_the_manifest(folder, 1)} bits")


@pytest.mark.parametrize("damage", ["unreadable", "link", "file"])
def test_a_whole_checkpoint(kind: Kind, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    for step in (BEFORE, LAST):
        shutil.copytree(kind.folder / step, folder / step)
    last = folder / LAST
    run = made(kind.name, folder)
    if damage == "unreadable":
        last.chmod(0)
    else:
        last.rename(tmp_path / "kept")
        last.symlink_to(tmp_path / "kept") if damage == "link" else last.write_text("no folder")
    with unprivileged():
        bundle = run.find_bundle(True, Consensus())
        if damage != "link":  # who names a link by its path means what it leads to
            with pytest.raises(CheckpointError, match=LAST):
                run.find_bundle(str(last), Consensus())
    last.chmod(0o755)
    assert bundle is not None
    assert bundle.path.name == BEFORE
