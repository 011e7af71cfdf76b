"""What describes flat arrays is not trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from morphing_trainer.data.store import META, MOST_META_BYTES, ArrayWriter, open_arrays, read_meta
from morphing_trainer.errors import DataError


@pytest.fixture
def described(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "folder").mkdir()
    for name in ("secret", "folder/tokens"):
        with ArrayWriter(tmp_path / f"{name}.bin", np.int32) as writer:
            writer.append(np.arange(6))
    return writer.description


@pytest.mark.parametrize("name", ["../secret", "/etc/x", "", ".", "a/b", "a.b", "A", "x" * 41, "a\n"])
def test_a_name_leads_nowhere(tmp_path: Path, described: dict[str, Any], name: str) -> None:
    assert open_arrays(tmp_path / "folder", {"tokens": described}, "here")["tokens"].tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(DataError, match=r"meta\.json names an array"):
        open_arrays(tmp_path / "folder", {name: described}, "here")


@pytest.mark.parametrize("length", [6.0, True, -6, "6", None, [6]])
def test_a_length_is_a_number_of_entries(tmp_path: Path, described: dict[str, Any], length: Any) -> None:
    with pytest.raises(DataError, match=r"meta\.json is damaged"):
        open_arrays(tmp_path / "folder", {"tokens": {**described, "length": length}}, "here")


def test_a_description_without_end_is_not_read(tmp_path: Path) -> None:
    (tmp_path / META).write_text('{"a": "' + "x" * MOST_META_BYTES + '"}')
    with pytest.raises(DataError, match=r"meta\.json cannot be read \(it is larger than"):
        read_meta(tmp_path, "here")
