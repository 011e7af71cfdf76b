"""Reading tensors into memory of their own: what the library writes, what nobody should, what changes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from morphing_trainer.checkpoint.tensors import read_tensors
from morphing_trainer.checkpoint.torch_files import read_torch_file
from morphing_trainer.errors import CheckpointError
from tests.reliability.hostile import UNREADABLE, safetensors

TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tensors = {f"{kind} {shape}": torch.randn(shape).to(kind) for kind in TYPES for shape in ((), (3, 5), (0, 4), (7,))}
    save_file(tensors, path, {"format": "pt"})
    found, theirs = read_tensors(path), load_file(path)
    assert found.keys() == theirs.keys()
    for name, tensor in found.items():
        assert tensor.dtype == theirs[name].dtype and tensor.shape == theirs[name].shape
        assert torch.equal(tensor, theirs[name])


def test_tensors_share_no_memory(tmp_path: Path) -> None:
    """What shares memory is saved as a whole, and freed as a whole."""
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, path)
    for tensor in read_tensors(path).values():
        assert tensor.untyped_storage().nbytes() == 16


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


FAULTS: dict[str, bytes] = {
    **{f"header: {kind}": safetensors(content) for kind, content in UNREADABLE.items()},
    **{f"file: {kind}": content for kind, content in UNREADABLE.items()},
    "a longer header than the file": b"\xff" * 7 + b"\x00{}",
    "a type of another kind": safetensors({"a": entry(dtype=["F32"])}, bytes(8)),
    "an unknown type": safetensors({"a": entry(dtype="F4")}, bytes(8)),
    "a shape that is none": safetensors({"a": entry(shape=2)}, bytes(8)),
    "a negative shape": safetensors({"a": entry(shape=[-2])}, bytes(8)),
    "a shape of truths": safetensors({"a": entry(shape=[True, 2])}, bytes(8)),
    "larger than its place": safetensors({"a": entry(shape=[3])}, bytes(8)),
    "smaller than its place": safetensors({"a": entry(shape=[1])}, bytes(8)),
    "one place": safetensors({"a": entry(data_offsets=[8])}, bytes(8)),
    "a hole": safetensors({"a": entry(), "b": entry(data_offsets=[12, 20])}, bytes(20)),
    "a place for two": safetensors({"a": entry(), "b": entry()}, bytes(8)),
    "cut short": safetensors({"a": entry()}, bytes(7)),
    "too long": safetensors({"a": entry()}, bytes(9)),
    "larger than any memory": safetensors({"a": entry(shape=[2**40], data_offsets=[0, 2**42])}, bytes(8)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_nobody_should_write(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(FAULTS[fault])
    with pytest.raises(CheckpointError, match=r"w\.safetensors: cannot be read") as caught:
        read_tensors(path)
    assert len(str(caught.value)) < 1000


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_tensors(path)


def test_what_is_read_does_not_change_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(1 << 20)}, path)
    found = read_tensors(path)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size - 4)
        file.write(bytes(4))
    assert bool((found["a"] == 1).all())


def test_an_optimizer_that_is_cut_short_while_it_is_read(tmp_path: Path) -> None:
    """An error, at worst: whoever maps a file is killed by a SIGBUS."""
    path = tmp_path / "file"
    torch.save({"a": torch.ones(1 << 22)}, path)
    size, end = path.stat().st_size, 1 << 16
    with path.open("r+b") as file:
        file.seek(size - end)
        tail = file.read()
        child = os.fork()
        if not child:
            try:
                stop = time.monotonic() + 1.5
                while time.monotonic() < stop:
                    try:
                        read_torch_file(path, mapped=False)["a"].sum()
                    except CheckpointError:
                        continue
            finally:
                os._exit(0)
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            time.sleep(0.002)
            file.truncate(end)
            time.sleep(0.002)
            file.truncate(size)
            os.pwrite(file.fileno(), tail, size - end)
    assert os.waitstatus_to_exitcode(status) == 0
