"""Importing without the collector, which is as it was before and after."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from morphing_trainer.cli.importing import imported


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("collects", [True, False])
def test_the_collector_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collects: bool, fails: bool
) -> None:
    (tmp_path / "slow_one.py").write_text(f"import gc\nCOLLECTS = gc.isenabled()\n{'1 / 0' if fails else ''}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "slow_one", raising=False)
    was = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        if fails:
            with pytest.raises(ZeroDivisionError):
                imported("slow_one")
        else:
            assert not imported("slow_one").COLLECTS
        assert gc.isenabled() == collects
    finally:
        (gc.enable if was else gc.disable)()
