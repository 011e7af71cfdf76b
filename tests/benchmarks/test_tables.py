"""Figures in the docs are those that were measured, by the code as it is, with commands that exist."""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import results, tables
from benchmarks.results import KEPT, Kept, Table, add_keep, mark, publish

NAMES = [path.stem for path in sorted(KEPT.glob("*.json"))]
TABLE = Table(["model", "ratio"], [["4 x 128", "1.01"], ["6 x 384", "1.00"]], "Two rows.")


@pytest.mark.parametrize("name", NAMES)
def test_a_kept_table(name: str) -> None:
    kept = Kept.load(KEPT / f"{name}.json")
    assert kept.table.rows
    assert all(len(row) == len(kept.table.columns) for row in kept.table.rows)
    assert mark(kept.module) == kept.made_by, f"{kept.module} has changed; measure again: {kept.command} --keep {name}"


@pytest.mark.parametrize("name", NAMES)
def test_the_command_of_a_kept_table_exists(name: str) -> None:
    kept = Kept.load(KEPT / f"{name}.json")
    python, _, module, *words = shlex.split(kept.command)
    assert python == "python"
    importlib.import_module(module).parser().parse_args(words)


def test_every_table_in_the_docs_is_kept_and_every_kept_one_is_in_the_docs() -> None:
    shown = [name for path in tables.pages() for name in tables.asked_for(path.read_text(encoding="utf-8"))]
    assert sorted(set(shown)) == NAMES


def test_the_docs_hold_what_is_kept() -> None:
    for path in tables.pages():
        text = path.read_text(encoding="utf-8")
        assert tables.filled(text) == text, f"{path}: run python -m benchmarks.tables"


def test_keeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(results, "KEPT", tmp_path)
    monkeypatch.setattr("sys.argv", ["x", "--size", "4x128", "--keep", "speed"])
    parser = argparse.ArgumentParser()
    parser.add_argument("--size")
    add_keep(parser)
    publish(TABLE, "benchmarks.throughput", parser.parse_args().keep)
    assert "| 4 x 128 | 1.01 |" in capsys.readouterr().out
    kept = Kept.load(tmp_path / "speed.json")
    assert kept.table.markdown() == TABLE.markdown()
    assert kept.command == "python -m benchmarks.throughput --size 4x128"
    page = "a\n<!-- table: speed -->\nold\n<!-- end of table -->\nb"
    filled = tables.filled(page, tmp_path)
    assert (
        "| 4 x 128 | 1.01 |" in filled and "old" not in filled and filled.startswith("a\n") and filled.endswith("\nb")
    )
    assert tables.filled(filled, tmp_path) == filled
    cell = "| speed | <!-- cell: speed; 6 x 384; ratio -->{}<!-- end of cell --> times |"
    assert tables.filled(cell.format("old"), tmp_path) == cell.format("1.00")
    for wrong in (cell.replace("6 x 384", "6 x 38"), cell.replace("ratio", "rate")):
        with pytest.raises(KeyError, match="no cell of row '6 x 38"):
            tables.filled(wrong, tmp_path)
    assert tables.outdated(tmp_path) == []
    data = json.loads((tmp_path / "speed.json").read_text())
    (tmp_path / "speed.json").write_text(json.dumps({**data, "made_by": "0" * 16}))
    assert tables.outdated(tmp_path) == ["speed"]


def test_the_help_tells_defaults_where_there_are_any() -> None:
    parser = results.options_of("First line.\n\nMore.")
    parser.add_argument("--rounds", type=int, default=5, help="how often")
    parser.add_argument("--small", action="store_true", help="a tiny model")
    parser.add_argument("--hidden", default="x", help=argparse.SUPPRESS)
    results.add_keep(parser)
    told = parser.format_help()
    assert "how often (default: 5)" in told and "First line." in told
    assert told.count("(default:") == 1 and "More." not in told and "--hidden" not in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rounds", "0"], "--rounds: must be above 0, is 0"),
        (["--rounds", "-3"], "--rounds: must be above 0, is -3"),
        (["--rounds", "2.5"], "--rounds: must be a whole number, is '2.5'"),
        (["--minutes", "nan"], "--minutes: must be above 0, is nan"),
        (["--keep", "../x"], "--keep: must be letters, digits, _ and -, is '../x'"),
        (["--keep", ""], "--keep: must be letters, digits, _ and -, is ''"),
    ],
)
def test_what_cannot_be_measured_or_kept_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = results.options_of("What.")
    parser.add_argument("--rounds", type=int, default=5, help="how often")
    parser.add_argument("--minutes", type=float, default=0.5, help="how long")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the runs")
    add_keep(parser)
    found = parser.parse_args(["--rounds", "2", "--seeds", "0", "-1", "--keep", "a_b-2"])
    assert (found.rounds, found.minutes, found.seeds, found.keep) == (2, 0.5, [0, -1], "a_b-2")
    with pytest.raises(SystemExit):
        parser.parse_args(words)
    assert said in capsys.readouterr().err


def test_the_kept_command_lacks_only_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "KEPT", tmp_path)
    for words in (["--size", "2x32", "--keep", "2x32"], ["--keep=2x32", "--size", "2x32"]):
        monkeypatch.setattr("sys.argv", ["x", *words])
        publish(TABLE, "benchmarks.throughput", "2x32")
        assert Kept.load(tmp_path / "2x32.json").command == "python -m benchmarks.throughput --size 2x32"


@pytest.mark.parametrize("damage", ["", "[]", '{"table": {}}'])
def test_a_damaged_table_is_named(tmp_path: Path, damage: str) -> None:
    (tmp_path / "speed.json").write_text(damage)
    with pytest.raises(ValueError, match=r"speed\.json: is no kept table"):
        Kept.load(tmp_path / "speed.json")


def test_a_table_that_no_page_asks_for_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables, "KEPT", tmp_path)
    monkeypatch.setattr(tables, "pages", list)
    (tmp_path / "new.json").write_text((results.KEPT / "ddp.json").read_text())
    tables.put(write=True)
    assert "new: no page shows it as a whole, by <!-- table: new -->" in capsys.readouterr().out


def test_nothing_is_kept_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "KEPT", tmp_path)
    publish(TABLE, "benchmarks.throughput", None)
    assert not list(tmp_path.iterdir())


def test_a_mark_is_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "__file__", str(tmp_path / "benchmarks" / "results.py"))
    (tmp_path / "a").mkdir()

    def of(text: str) -> str:
        (tmp_path / "a" / "b.py").write_text(text)
        return mark("a.b")

    begun = of('"""One."""\ndef f():\n    """Two."""\n    return 1\n')
    assert of('"""Other."""\n\n\ndef f():  # why\n    """Words."""\n    return 1\n') == begun
    assert of('"""One."""\ndef f():\n    """Two."""\n    return 2\n') != begun
    option = 'parser.add_argument("--n", default={}, help="{}")\n'
    assert of(option.format(1, "one")) == of(option.format(1, "other"))
    assert of(option.format(1, "one")) != of(option.format(2, "one"))


def test_a_mark_is_also_of_what_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "__file__", str(tmp_path / "benchmarks" / "results.py"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.py").write_text("from a import c\n")
    (tmp_path / "a" / "c.py").write_text("from a.d import one\nfrom other import two\n")

    def of(text: str) -> str:
        (tmp_path / "a" / "d.py").write_text(text)
        return mark("a.b")

    assert of("one = 1\n") != of("one = 2\n")
    assert of("one = 1\n") == of("# why\none = 1\n")


def test_the_command_tells_of_what_differs() -> None:
    found = subprocess.run([sys.executable, "-m", "benchmarks.tables", "--check"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
