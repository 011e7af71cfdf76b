from __future__ import annotations

import os
from pathlib import Path

import datasets
import pytest
from hypothesis import settings

settings.register_profile("data", derandomize=True, max_examples=60, deadline=None, database=None)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` keeps what it converts in the test's own folder, so that no test finds another's results."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(autouse=True)
def same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets.map` with several processes leaves a copy in the place of `os.environ`, which others hold on to."""
    monkeypatch.setattr(os, "environ", os.environ)
