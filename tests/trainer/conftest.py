"""Speed: these tests make hundreds of short runs."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from morphing_trainer.reporting import plots


@pytest.fixture(scope="session", autouse=True)
def _frozen_imports() -> None:
    """Every morph collects garbage; what the imports have left need not be searched each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the runs; `reporting` has tests of its own, and one here asks for the picture."""

    def nothing(*args: Any) -> None:
        pass

    if "picture" not in request.node.name:
        monkeypatch.setattr(plots, "plot_losses", nothing)
