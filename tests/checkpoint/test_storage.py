"""What a disk says is told from other errors, whatever library meets it."""

from __future__ import annotations

import multiprocessing
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from morphing_trainer.checkpoint.storage import refusal

STATE = {"weight": torch.ones(100), "bias": torch.ones(3)}
WRITERS: dict[str, Callable[[Path], Any]] = {
    "torch": lambda path: torch.save(STATE, path),
    "safetensors": lambda path: save_file(STATE, path),
    "python": lambda path: path.write_bytes(bytes(2000)),
}


def cut_off(writer: str, path: Path, sizes: range, told: Any) -> None:
    """In a process of its own: write a file that cannot become larger than each of `sizes`, in bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    strange = []
    for size in sizes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            WRITERS[writer](path)
            strange.append(f"{size}: was written")
        except Exception as error:
            if refusal(error) is None:
                strange.append(f"{size}: {type(error).__name__}: {error}")
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    told.put(strange)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_cannot_become_as_large_as_it_should(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "file"
    WRITERS[writer](path)
    whole = path.stat().st_size
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    process = context.Process(target=cut_off, args=(writer, path, range(0, whole, 7), told))
    process.start()
    strange = told.get(timeout=60)
    process.join()
    assert not strange, strange


def test_other_errors_are_none_of_a_disk() -> None:
    assert refusal(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert refusal(ValueError("inline_container")) is None
