from __future__ import annotations

import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from morphing_trainer.checkpoint.torch_files import read_torch_file
from morphing_trainer.errors import CheckpointError
from tests.reliability.hostile import archive


def test_several_threads_may_read_at_once(tmp_path: Path) -> None:
    """Random states hold numpy's arrays; what torch may make of a file is allowed to all threads together."""
    path = tmp_path / "rng_state.pth"
    torch.save({"numpy": np.random.RandomState(0).get_state(), "cpu": torch.get_rng_state()}, path)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(read_torch_file, [path] * 200):
            assert torch.equal(found["cpu"], torch.get_rng_state())


def test_reading_leaves_the_warnings_of_other_threads_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What warnings are shown is one list of the process: a thread that changes it undoes what another one has set."""
    path, seen = tmp_path / "file.pt", []
    torch.save({"weight": torch.ones(2)}, path)
    load = torch.load

    def loads(*args: Any, **options: Any) -> Any:
        seen.append(warnings.filters)
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", loads)
    read_torch_file(path)
    assert seen[0] is warnings.filters


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path) as file:
        content = {record.filename: file.read(record) for record in file.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in content.items():
            file.writestr(name, data)


def doubled(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr(next(name for name in file.namelist() if name.endswith("/data/0")), bytes(1 << 14))


def swollen(path: Path) -> None:
    """The directory of the archive says that a record is of 1 GB."""
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 10**9)
    path.write_bytes(content)


def repeated(path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**12)}, path)


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (compressed, "a record is compressed"),
        (doubled, "two records have one name"),
        (swollen, "its records are larger than the file"),
        (repeated, "has more entries than are stored"),
    ],
)
def test_what_takes_more_than_the_file_holds(
    tmp_path: Path, changed: Callable[[Path], None], said: str, mapped: bool
) -> None:
    """Each by the check that is for it: torch would unpack the first, and make the last."""
    path = tmp_path / "optimizer.pt"
    torch.save({"a": torch.zeros(1 << 12)}, path)
    assert read_torch_file(path, mapped=mapped)["a"].shape == (1 << 12,)
    changed(path)
    with pytest.raises(CheckpointError, match=said):
        read_torch_file(path, mapped=mapped)


def nested(path: Path) -> None:
    content: list[object] = []
    for _ in range(100):
        content = [content]
    torch.save({"a": content}, path)


NUMBER = b"\x8a\x08" + struct.pack("<q", 100)


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize(
    ("write", "said"),
    [
        (archive(b"\x80\x02cbuiltins\nbytearray\n" + NUMBER + b"\x85R."), "it asks for builtins bytearray"),
        (archive(b"\x80\x02ctorch\nFloatTensor\n" + NUMBER + b"\x85R."), "it asks for torch FloatTensor"),
        (nested, "it is nested too deeply"),
    ],
)
def test_what_no_run_saves(tmp_path: Path, write: Callable[[Path], None], said: str, mapped: bool) -> None:
    """In sizes that would do no harm: it is the kind that is refused."""
    write(tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError, match=said):
        read_torch_file(tmp_path / "optimizer.pt", mapped=mapped)


def test_want_of_memory_is_not_taken_for_damage(tmp_path: Path) -> None:
    """It would be passed over for an older checkpoint."""
    torch.save({"state": torch.zeros(300 << 20, dtype=torch.uint8)}, tmp_path / "a.pt")
    program = """
import resource, sys
from pathlib import Path
from morphing_trainer.checkpoint.torch_files import read_torch_file
from morphing_trainer.memory.failures import is_out_of_memory
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)
try:
    read_torch_file(Path(sys.argv[1]), mapped=False)
except Exception as error:
    sys.exit(0 if is_out_of_memory(error) else repr(error))
sys.exit("it was read")
"""
    command = [sys.executable, "-c", program, str(tmp_path / "a.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
