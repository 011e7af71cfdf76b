from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from morphing_trainer.data.progress import LONG_CHARACTERS, progress_bars


@pytest.fixture(autouse=True)
def bars_as_before() -> Iterator[None]:
    before = is_progress_bar_enabled()
    yield
    (enable_progress_bar if before else disable_progress_bar)()


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("enabled", [False, True])
def test_bars_are_shown_for_long_work_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, long: bool, enabled: bool
) -> None:
    """Whatever a run has set for itself, which is as it was afterwards."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    (enable_progress_bar if enabled else disable_progress_bar)()
    with pytest.raises(KeyError), progress_bars(LONG_CHARACTERS * 2 if long else 10):
        assert is_progress_bar_enabled() is (terminal and long)
        raise KeyError
    assert is_progress_bar_enabled() is enabled
