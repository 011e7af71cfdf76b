"""Limits of containers, read from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from morphing_trainer.memory.system import GIB, Amount, container_limits, system_memory


def written(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def own(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "own"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_version_2(tmp_path: Path) -> None:
    """The limit stands two folders up; the file cache that could be dropped does not count."""
    root = tmp_path / "cgroup"
    written(root / "a", memory__max=GIB, memory__current=GIB // 2, memory__stat=f"anon 5\ninactive_file {GIB // 4}")
    written(root / "a" / "b", memory__max="max", memory__current=GIB // 8, memory__stat="inactive_file 0")
    found = container_limits(root, own(tmp_path, "0::/a/b"))
    assert found == [Amount(GIB // 4, GIB)]
    assert found[0].percent == 25


def test_version_1(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    names = ("memory__limit_in_bytes", "memory__usage_in_bytes", "memory__stat")
    inside = (GIB, 700, "inactive_file 1\ntotal_inactive_file 300")
    written(root / "memory" / "job", **dict(zip(names, inside, strict=True)))
    written(root / "memory", **dict(zip(names, (2**63 - 4096, 9000, ""), strict=True)))
    assert container_limits(root, own(tmp_path, "4:cpu:/job", "5:hugetlb,memory:/job")) == [Amount(400, GIB)]


def test_in_a_container_the_path_is_one_of_the_host(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    written(root, memory__max=GIB, memory__current=1000)
    assert container_limits(root, own(tmp_path, "0::/docker/0123")) == [Amount(1000, GIB)]


@pytest.mark.parametrize("there", [True, False])
def test_no_limit(tmp_path: Path, there: bool) -> None:
    path = own(tmp_path, "0::/") if there else tmp_path / "nothing"
    assert container_limits(tmp_path / "cgroup", path) == []


def test_the_nearer_limit_counts(tmp_path: Path) -> None:
    root, machine = tmp_path / "cgroup", psutil.virtual_memory()
    path = own(tmp_path, "0::/")
    assert system_memory(root, path).total == machine.total
    written(root, memory__max=2 * GIB, memory__current=2 * GIB - 1000)
    assert system_memory(root, path) == Amount(2 * GIB - 1000, 2 * GIB)
    written(root, memory__max=machine.total * 2, memory__current=1)
    assert system_memory(root, path).total == machine.total


def test_here() -> None:
    found = system_memory()
    assert 0 < found.used < found.total <= psutil.virtual_memory().total
