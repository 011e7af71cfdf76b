"""Every benchmark runs, at a size of seconds, and keeps a table whose command makes it again. Its figures are no
business of tests; what is compared is asserted by the benchmarks themselves."""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.results import Kept

TINY = ["--layers", "1", "--hidden", "64"]
QUICK = {
    "digest_cost": ["--small", "--repeats", "1"],
    "evaluation_cost": ["--pairs", "1", "--batches", "2", "--vocabulary", "512", *TINY],
    "lora_cost": ["--small"],
    "save_stall": ["--rounds", "1", "--vocabulary", "512", *TINY],
}
SLOW = {
    "data_feed": ["--rounds", "1", "--seconds", "0.05", "--documents", "40"],
    "data_prepare": ["--megabytes", "0.3"],
    "ddp": ["--rounds", "1", "--pairs", "1", "--steps", "14", *TINY],
    "morph_distributed": ["--small", "--repeats", "1"],
    "resume_cost": ["--rounds", "1", "--vocabulary", "512", *TINY],
}
"""They start processes, or make much text."""

ROWS = {
    "data_feed": 2,
    "data_prepare": 2,
    "evaluation_cost": 4,
    "lora_cost": 6,
    "morph_distributed": 12,
    "resume_cost": 2,
}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [*QUICK.items(), *(pytest.param(*each, marks=pytest.mark.long) for each in SLOW.items())],
    ids=[*QUICK, *SLOW],
)
def test_a_benchmark(
    name: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(results, "KEPT", tmp_path)
    monkeypatch.setattr("sys.argv", [name, *arguments, "--keep", "found"])
    module.main()
    kept = Kept.load(tmp_path / "found.json")
    assert len(kept.table.rows) == ROWS.get(name, 1)
    assert all(len(row) == len(kept.table.columns) for row in kept.table.rows)
    assert all(cell for row in kept.table.rows for cell in row)
    assert kept.table.markdown() in capsys.readouterr().out
    python, m, found, *words = shlex.split(kept.command)
    assert [python, m, found] == ["python", "-m", f"benchmarks.{name}"]
    assert module.parser().parse_args(words) == module.parser().parse_args(arguments)


def test_every_benchmark_of_a_table_has_a_parser() -> None:
    folder = Path(results.__file__).parent
    for path in folder.glob("*.py"):
        if "publish(" in path.read_text(encoding="utf-8") and path.stem != "results":
            assert importlib.import_module(f"benchmarks.{path.stem}").parser().parse_args([]).keep is None, path
