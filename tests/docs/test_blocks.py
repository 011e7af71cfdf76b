"""Every code block of the README and the documentation works for who copies it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from generation.blocks import pages_of, read_blocks
from generation.outputs import ROOT

from tests.docs import commands
from tests.docs.running import Page
from tests.docs.workshop import opened
from tests.support import Tokens, tiny_model

PAGES = [page for page in pages_of(ROOT) if read_blocks(ROOT, page)]

NOT_RUN = {
    ("docs/quickstart.md", "makes a virtual environment and fetches packages"): 1,
    ("docs/howto/logging.md", "starts a server"): 1,
}
"""(page, reason) -> how many of its blocks are not run. A new one has to be added here."""


def given(page: str) -> dict[str, Any]:
    """Names that the README's short examples take from the reader's own script."""
    if page != "README.md":
        return {}
    model = tiny_model()
    return {
        "model": model,
        "train_dataset": Tokens(),
        "eval_dataset": Tokens(20, seed=2),
        "optimizer": torch.optim.AdamW(model.parameters()),
    }


@pytest.mark.timeout(120)
@pytest.mark.parametrize("page", PAGES)
def test_every_block_works(page: str, tmp_path: Path, prepared: Path) -> None:
    with opened(tmp_path, prepared):
        Page(given(page)).run(read_blocks(ROOT, page))


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES)
def test_every_training_trains(page: str, tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short and small where no block says how; but for data that only the Hub has, and what is pushed there."""
    monkeypatch.setattr(commands, "run_trainings", True)
    with opened(tmp_path, prepared):
        Page(given(page)).run(read_blocks(ROOT, page))


def test_what_is_not_run_is_known() -> None:
    blocks = [block for page in PAGES for block in read_blocks(ROOT, page)]
    found = Counter((block.page, block.marks["not run"]) for block in blocks if "not run" in block.marks)
    assert found == NOT_RUN
