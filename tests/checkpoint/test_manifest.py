from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from morphing_trainer.checkpoint import MANIFEST, verify, write_manifest
from morphing_trainer.checkpoint.manifest import MAX_MANIFEST_BYTES, sync_folder
from morphing_trainer.errors import CheckpointError

FILES = {
    "config.json": b'{"n_layer": 2}',
    "model.safetensors": bytes(range(256)) * 40,
    "optimizer.safetensors": bytes(range(255, -1, -1)) * 40,  # as long as the model: only the hash tells them apart
    "ranks/rng_0.json": b"[1, 2, 3]",
    "ranks/deep/\u00e9.bin": b"x",
}


def make(folder: Path) -> Path:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    write_manifest(folder)
    return folder


def fault(folder: Path, required: tuple[str, ...] = ()) -> str:
    with pytest.raises(CheckpointError) as caught:
        verify(folder, required)
    assert str(caught.value).endswith(("; use another checkpoint", "; update the library"))
    return str(caught.value)


def rewrite(folder: Path, content: Any) -> None:
    (folder / MANIFEST).write_text(content if isinstance(content, str) else json.dumps(content))


def test_manifest_lists_every_file_but_itself(tmp_path: Path) -> None:
    path = write_manifest(make(tmp_path))  # a second time: the first manifest is not listed
    assert path == tmp_path / MANIFEST
    data = json.loads(path.read_text())
    assert data["format"] == 1
    assert list(data["files"]) == sorted(FILES)
    for name, content in FILES.items():
        assert data["files"][name] == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    verify(tmp_path)
    verify(tmp_path, required=["config.json", "ranks/rng_0.json"])


def missing(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def first_bit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def last_bit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 128]))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = {
    missing: "is missing",
    truncated: "bytes instead of",
    first_bit: "SHA-256 differs",
    last_bit: "SHA-256 differs",
    empty: "bytes instead of",
    longer: "bytes instead of",
    folder_instead: "is not a regular file",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_and_its_file_named(tmp_path: Path, name: str, damage: Any) -> None:
    make(tmp_path)
    damage(tmp_path / name)
    message = fault(tmp_path)
    assert message.startswith(f"{tmp_path / name}: ") and DAMAGE[damage] in message


@pytest.mark.parametrize("damage", [missing, truncated, empty, folder_instead], ids=lambda damage: damage.__name__)
def test_damage_to_the_manifest_is_found(tmp_path: Path, damage: Any) -> None:
    make(tmp_path)
    rewrite(tmp_path, (tmp_path / MANIFEST).read_text().rstrip())  # so that one byte less is one bracket less
    damage(tmp_path / MANIFEST)
    assert fault(tmp_path).startswith(f"{tmp_path / MANIFEST}: is")


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations([*FILES, MANIFEST], 2)))
def test_two_files_swapped(tmp_path: Path, one: str, other: str) -> None:
    make(tmp_path)
    contents = (tmp_path / one).read_bytes(), (tmp_path / other).read_bytes()
    (tmp_path / other).write_bytes(contents[0])
    (tmp_path / one).write_bytes(contents[1])
    assert any(str(tmp_path / name) in fault(tmp_path) for name in (one, other))


@pytest.mark.parametrize("name", FILES)
def test_a_file_from_another_checkpoint(tmp_path: Path, name: str) -> None:
    make(tmp_path / "a")
    other = tmp_path / "b" / name
    other.parent.mkdir(parents=True)
    other.write_bytes(FILES[name].swapcase() + b"!")
    write_manifest(tmp_path / "b")
    os.replace(other, tmp_path / "a" / name)
    assert str(tmp_path / "a" / name) in fault(tmp_path / "a")


def test_every_flipped_bit_of_a_manifest_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"abc")
    whole = write_manifest(tmp_path).read_bytes()
    verify(tmp_path)
    for position, bit in itertools.product(range(len(whole)), range(8)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << bit
        (tmp_path / MANIFEST).write_bytes(flipped)
        with pytest.raises(CheckpointError):
            verify(tmp_path, ["a.bin"])


def test_required_names_and_extra_files(tmp_path: Path) -> None:
    make(tmp_path)
    assert "does not list 'scheduler.json', which is needed" in fault(tmp_path, ("config.json", "scheduler.json"))
    (tmp_path / "scheduler.json").write_text("not listed, so not part of the checkpoint")
    assert "does not list 'scheduler.json'" in fault(tmp_path, ("scheduler.json",))
    verify(tmp_path)


ENTRY = {"size": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not readable JSON"),
        ("[" * 100_000, "is not readable JSON"),
        ("[]", "is not a manifest"),
        ({"files": {}}, "is not a manifest"),
        ({"format": True, "files": {}}, "is not a manifest"),
        ({"format": 1, "files": ["a.bin"]}, "is not a manifest"),
        ({"format": 2, "files": {}}, "has format 2, and this version reads format 1"),
        ('{"format": 1, "files": {"a.bin": {}}, "files": {}}', "is not readable JSON"),
        ({"format": 1, "files": {"a.bin": None}}, "has no size and SHA-256 for 'a.bin'"),
        ({"format": 1, "files": {"a.bin": {**ENTRY, "size": "3"}}}, "has no size and SHA-256"),
        ({"format": 1, "files": {"a.bin": {**ENTRY, "size": True}}}, "has no size and SHA-256"),
        ({"format": 1, "files": {"a.bin": {**ENTRY, "sha256": 5}}}, "has no size and SHA-256"),
        ({"format": 1, "files": {"a.bin": {**ENTRY, "sha256": "abc"}}}, "has no size and SHA-256"),
        *(
            ({"format": 1, "files": {name: ENTRY}}, "is not a path inside the folder")
            for name in [
                "/a.bin",
                "../a.bin",
                "x/../a.bin",
                "./a.bin",
                "x//a.bin",
                "",
                ".",
                "..",
                "x/",
                "C:a.bin",
                "..\\a.bin",
                "a\0.bin",
            ]
        ),
    ],
)
def test_the_manifest_is_not_trusted(tmp_path: Path, content: Any, message: str) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for place in (tmp_path, folder):
        (place / "a.bin").write_bytes(b"abc")
    rewrite(folder, content)
    assert message in fault(folder)


def test_a_manifest_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(b'{"format": 1, "files": {"\xff": 1}}')
    assert "is not readable JSON" in fault(tmp_path)


def test_links_are_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    folder = make(tmp_path / "checkpoint")
    (folder / "ranks").rename(outside)
    (folder / "ranks").symlink_to(outside)  # the content is right, the place is not
    assert f"{folder / 'ranks/deep/é.bin'}: is a link or is behind one" in fault(folder)
    with pytest.raises(CheckpointError, match="ranks: is a link or special file"):
        write_manifest(folder)
    (folder / "ranks").unlink()
    outside.rename(folder / "ranks")
    verify(folder)
    (folder / MANIFEST).rename(tmp_path / "manifest")
    (folder / MANIFEST).symlink_to(tmp_path / "manifest")
    assert f"{folder / MANIFEST}: is not a regular file" in fault(folder)


def test_a_name_that_could_not_be_read_back_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a:b").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot list a file named 'a:b'"):
        write_manifest(tmp_path)
    assert not (tmp_path / MANIFEST).exists()


def test_no_folder(tmp_path: Path) -> None:
    assert "is not a folder" in fault(tmp_path / "absent")
    (tmp_path / "file").touch()
    assert "is not a folder" in fault(tmp_path / "file")


def test_an_unreadable_file_is_a_fault_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)

    def broken(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("hashlib.file_digest", broken)
    assert f"{tmp_path / 'config.json'}: cannot be read (Input/output error)" in fault(tmp_path)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EIO, errno.ENOSPC])
def test_a_folder_that_is_not_brought_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Some file systems cannot do that for folders, and say so; everything else is a failure."""

    def fails(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fails)
    known = code in (errno.EINVAL, errno.ENOTSUP)
    with contextlib.nullcontext() if known else pytest.raises(OSError, match=os.strerror(code)):
        sync_folder(tmp_path)


def test_a_manifest_without_end_is_not_read(tmp_path: Path) -> None:
    make(tmp_path)
    os.truncate(tmp_path / MANIFEST, MAX_MANIFEST_BYTES + 1)
    assert "is too large to be a manifest" in fault(tmp_path)
