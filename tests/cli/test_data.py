"""`morph data` as a user meets it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from morphing_trainer.cli.arguments import parse
from morphing_trainer.cli.data import bars
from morphing_trainer.cli.morph import main
from morphing_trainer.data.request import DataRequest
from morphing_trainer.errors import ConfigError

TEXT = "".join(f"Sentence {number} is here. And another one follows.\n" for number in range(80))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.jsonl"
    rows = [{"text": TEXT[start : start + 800], "title": f"Part {start}"} for start in range(0, len(TEXT), 800)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": " ", "title": "Blank"}]))
    return str(path)


def arguments(text: str, *more: str) -> list[str]:
    return ["--train_file", text, "--block_size", "32", "--vocab_size", "300", "--validation_split", "0.2", *more]


def prepare(tmp_path: Path, text: str, *more: str) -> int:
    return main(["data", "prepare", "--output", str(tmp_path / "ready"), *arguments(text, *more)])


def test_prepare_says_what_it_made_of_what(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(tmp_path, text) == 0
    out = capsys.readouterr().out
    assert f"prepared {tmp_path / 'ready'}: packing, block_size 32, 300 tokens known" in out
    counted = [line for line in out.splitlines() if "documents" in line]
    assert len(counted) == 2
    assert sum("(1 blank and left out, 0 shorter than a sample)" in line for line in counted) == 1
    assert "--dataset_name" in out
    assert sorted(path.name for path in (tmp_path / "ready").iterdir()) == [
        "meta.json",
        "tokenizer",
        "train",
        "validation",
    ]


def test_prepare_takes_config_files_and_the_command_line_wins(tmp_path: Path, text: str) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"train_file: {text}\nblock_size: 16\nvocab_size: 280\nsample_mode: continuation\nmax_steps: 5\n")
    options = ["--config", str(config), "--block_size", "24", "--output", str(tmp_path / "ready")]
    assert main(["data", "prepare", *options]) == 0
    made = json.loads((tmp_path / "ready" / "meta.json").read_text())
    assert made["mode"] == "continuation"
    assert made["request"]["block_size"] == 24


def test_prepare_refuses_to_overwrite_before_it_reads_anything(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(tmp_path, text) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "ready").rglob("*") if path.is_file()}
    assert prepare(tmp_path, "nowhere.txt") == 2
    assert "holds prepared data already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "ready").rglob("*") if path.is_file()} == before
    assert prepare(tmp_path, text, "--overwrite", "--sample_mode", "continuation") == 0
    assert json.loads((tmp_path / "ready" / "meta.json").read_text())["mode"] == "continuation"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["prepare"], ["--output"]),
        (["prepare", "--output", "x", "--train_file", "nowhere.txt"], ["nowhere.txt", "does not exist"]),
        (["prepare", "--output", "x", "--train_flie", "a"], ["train_flie", "train_file"]),
        (["prepare", "--output", "x", "--block_size", "100000"], ["less than one block of 100000"]),
        (
            ["prepare", "--output", "x", "--block_size", "64", "--n_positions", "32"],
            ["block_size: is 64", "at most 32"],
        ),
        (["prepare", "--output", "x", "--sample_mode", "packed"], ["packed", "packing"]),
        (["prepare", "--output", "x", "--language", "English"], ["language", "ISO 639"]),
        (["prepare", "--output", "x", "--preprocessing_num_workers", "0"], ["at least 1, is 0"]),
        (["prepare", "--output", "x", "--max_documents", "0"], ["at least 1, is 0"]),
        (["prepare", "--output", "x", "--plan", "demo"], ["plan 'demo'", "one data set at a time"]),
        (["inspect", "nowhere"], ["'nowhere'"]),
        (["inspect", "--samples", "-1"], ["--samples must be at least 0"]),
        (["inspect", "--samples", "x"], ["--samples", "x"]),
        (["inspect", "--split", "test"], ["--split", "test"]),
        (["inspect", "--start", "999999"], ["--start is 999999, but there are"]),
        (["inspekt"], ["'inspekt'", "prepare, inspect"]),
    ],
)
def test_wrong_input_is_one_clear_error_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    expected: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", *options]) == 2
    said = capsys.readouterr().err
    for part in expected:
        assert part in said
    assert "Traceback" not in said
    assert not (tmp_path / "x").exists()


def test_a_prepared_folder_is_not_prepared_again(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(tmp_path, text) == 0
    options = ["--dataset_name", str(tmp_path / "ready"), "--output", str(tmp_path / "again")]
    assert main(["data", "prepare", *options]) == 2
    assert "is a prepared folder already. Copy it instead" in capsys.readouterr().err


@pytest.mark.parametrize("of", ["folder", "arguments"])
def test_inspect_shows_prompt_and_truth_by_name(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str], of: str
) -> None:
    given = arguments(text, "--sample_mode", "continuation")
    if of == "folder":
        assert prepare(tmp_path, text, "--sample_mode", "continuation") == 0
        given = [str(tmp_path / "ready")]
    capsys.readouterr()
    assert (
        main(
            ["data", "inspect", *given, "--samples", "2"]
            if of == "folder"
            else ["data", "inspect", "--samples", "2", *given]
        )
        == 0
    )
    out = capsys.readouterr().out
    first, second = out.split("\nsample ")[1:]
    assert first.startswith("0, start of text 0: ")
    assert "prompt | Part " in first
    assert "truth  | " in first
    assert second.startswith("1, in text 0: ")
    assert "\x1b" not in out
    assert "lengths, 0 to 32: |" in out
    assert "% learnt" in out
    assert "blank and left out" in out


def test_inspect_speaks_json(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(tmp_path, text, "--sample_mode", "continuation") == 0
    capsys.readouterr()
    options = ["--json", "--split", "validation", "--start", "1", "--samples", "2"]
    assert main(["data", "inspect", str(tmp_path / "ready"), *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [sample["index"] for sample in said["samples"]] == [1, 2]
    for sample in said["samples"]:
        assert [part["kind"] for part in sample["parts"]] == ["prompt", "truth"]
    train = said["splits"]["train"]
    assert train["samples"] == sum(train["histogram"])
    assert train["tokens"] > train["learnt"] > 0
    assert train["shortest"] <= train["mean"] <= train["longest"] <= 32
    counts = [said["splits"][name]["counts"] for name in ("train", "validation")]
    assert sum(count["blank"] for count in counts) == 1


def test_packed_samples_are_all_truth(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", *arguments(text), "--samples", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    (part,) = said["samples"][0]["parts"]
    assert (part["kind"], part["tokens"]) == ("truth", 32)
    assert part["text"].startswith("Part 800\n"), "the first document is held out, the title is a line"
    assert said["splits"]["train"]["tokens"] == said["splits"]["train"]["learnt"]


def test_text_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil.txt"
    path.write_text("\x1b[2J\x07 [bold]plain[/bold] words\n" * 50)
    options = ["--train_file", str(path), "--block_size", "16", "--vocab_size", "300", "--samples", "2"]
    assert main(["data", "inspect", *options]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out
    assert "\\x1b" in out
    assert "[bold]" in out


def test_on_a_terminal_the_prompt_is_dim_and_the_truth_is_not(tmp_path: Path, text: str) -> None:
    code = "import sys; from morphing_trainer.cli.morph import main; sys.exit(main(sys.argv[1:]))"
    given = arguments(text, "--sample_mode", "continuation", "--samples", "1")
    environment = os.environ | {"TERM": "xterm-256color", "HF_DATASETS_CACHE": str(tmp_path / "other"), "CI": ""}
    environment.pop("NO_COLOR", None)
    controller, terminal = pty.openpty()
    command = [sys.executable, "-c", code, "data", "inspect", *given]
    process = subprocess.Popen(command, stdout=terminal, stderr=subprocess.PIPE, env=environment)
    os.close(terminal)
    out = b""
    while True:
        try:
            out += os.read(controller, 65536)
        except OSError:  # the other side has been closed
            break
    assert process.wait(60) == 0, process.stderr.read().decode() if process.stderr else ""
    if process.stderr:
        process.stderr.close()
    os.close(controller)
    assert b"\x1b[2mPart 800" in out
    assert b"\x1b[1mSentence 18" in out
    assert b"truth  |" not in out


@pytest.mark.parametrize(
    "argv", [["data"], ["data", "--help"], ["data", "prepare", "--help"], ["data", "inspect", "--help"]]
)
def test_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(argv) == 0
    except SystemExit as stop:
        assert stop.code == 0
    assert "morph data" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("counts", "encoding", "expected"),
    [([0, 1, 8], "utf-8", " ▁█"), ([0, 0], "utf-8", "  "), ([1, 100], "utf-8", "▁█"), ([0, 5, 9], "ascii", "059")],
)
def test_a_histogram_is_a_character_for_each_count(counts: list[int], encoding: str, expected: str) -> None:
    assert bars(counts, encoding) == expected


def test_every_data_argument_reaches_the_request() -> None:
    """From the command line, and each of them changes what is asked for."""
    given: dict[str, Any] = {
        "dataset_name": "a/b",
        "dataset_config": "en",
        "train_split": "extra",
        "text_column": "body",
        "validation_split": 0.1,
        "streaming": True,
        "max_documents": 7,
        "sample_mode": "continuation",
        "language": "de",
        "block_size": 64,
        "preprocessing_num_workers": 3,
    }
    argv = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    request = DataRequest.of(parse(argv).data, seed=5)
    given["workers"] = given.pop("preprocessing_num_workers")
    assert {name: getattr(request, name) for name in given} == given
    assert request.seed == 5
    assert all(getattr(DataRequest(), name) != value for name, value in given.items())
    files = DataRequest.of(parse(["--train_file", "a.txt", "b.txt", "--validation_file", "c.txt"]).data, 0)
    assert (files.train_file, files.validation_file) == (("a.txt", "b.txt"), ("c.txt",))
    assert hash(files)


def test_sample_modes_are_checked_in_files_too(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("sample_mode: continuaton\n")
    with pytest.raises(ConfigError, match="'continuaton' is not a valid value; did you mean 'continuation'"):
        parse(["--config", str(path)])
    path.write_text("sample_mode: continuation\nstreaming: true\n")
    assert parse(["--config", str(path)]).data.sample_mode == "continuation"
