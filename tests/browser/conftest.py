"""A real browser: headless Chromium, where one is installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.reporting.conftest import phases, record

__all__ = ["browser", "phases", "record"]

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip(f"needs a Chromium on the PATH: {', '.join(_NAMES)}")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=found, args=_FLAGS)
        yield opened
        opened.close()
