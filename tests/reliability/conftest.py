from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.reliability.nursery import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Warm processes for as many runs as one likes."""
    made = Nursery()
    yield made
    made.close()
