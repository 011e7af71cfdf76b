"""What the tests of the pages share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.workshop import prepare


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that blocks take to be there."""
    folder = tmp_path_factory.mktemp("workshop")
    prepare(folder)
    return folder
