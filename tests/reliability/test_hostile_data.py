"""Payloads in data: text and tables, prepared folders, and what a run leaves for pictures."""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from morphing_trainer.cli.plot import main as plot
from morphing_trainer.data.opening import Text, open_data
from morphing_trainer.data.prepared import write_prepared
from morphing_trainer.data.request import DataRequest
from morphing_trainer.data.store import ArrayWriter
from morphing_trainer.data.tokenizer import train_tokenizer
from morphing_trainer.documents import DocumentError, load_document
from morphing_trainer.errors import DataError, MorphError
from morphing_trainer.plans import load_plan
from morphing_trainer.schedule import Schedule
from tests.reliability.hostile import DIGITS, UNREADABLE, nothing_runs, pickled
from tests.reliability.mutations import VALUES, _places
from tests.support import trainer

DOCUMENTS = [f"Document {number}, with words. And a second sentence.\n" for number in range(60)]
TOKENIZER = train_tokenizer(DOCUMENTS, 300)

YAML: dict[str, str] = {
    "a call": "!!python/object/apply:os.mkdir [executed]",
    "a call in a key": "? !!python/object/apply:os.mkdir [executed]\n: 1",
    "a call in an entry": "- name: !!python/object/apply:os.mkdir [executed]\n  value: 1",
    "a new object": "!!python/object/new:os.mkdir [executed]",
    "a name": "- !!python/name:os.system",
    "a module": "- !!python/module:os",
    "a tag of one's own": "- !x {a: 1}",
    "a directive": "%TAG !p! tag:yaml.org,2002:python/\n---\n- !p!object/apply:os.mkdir [executed]",
    "aliases of aliases": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)),
    "merges of merges": "a: &a {x: 1}\n"
    + "".join(
        f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "itself": "a: &a [*a]",
    "deep": "[" * 100_000,
    "deep by indentation": "".join(" " * depth + "a:\n" for depth in range(700)),
    "a number of a million digits": f"- {DIGITS[:900_000]}",
    "sixty times sixty": "- 60:60:60:60:60:60:60:60:60",
    "a NUL byte": "- \0",
    "too large": "- x\n" * 300_000,
    "many anchors": "".join(f"- &a{number} x\n" for number in range(90_000)),
    "a long key": "? " + "k" * 500_000 + "\n: 1",
    "many documents": "---\n- x\n" * 1000,
}  # fmt: skip


@pytest.mark.parametrize("kind", YAML)
def test_yaml_is_data(tmp_path: Path, kind: str) -> None:
    """For every reader of YAML alike: schedules, plans and run configs come through here."""
    path = tmp_path / "file.yaml"
    path.write_text(YAML[kind])
    for read in (load_document, Schedule.load, lambda path: load_plan(str(path))):
        with nothing_runs(tmp_path), pytest.raises(MorphError, match=r"file\.yaml") as caught:
            read(path)
            raise DocumentError("file.yaml: read, without harm")
        assert len(str(caught.value)) < 200_000


@pytest.mark.parametrize("content", UNREADABLE)
def test_files_that_are_no_schedule(tmp_path: Path, content: str) -> None:
    for suffix in ("yaml", "json"):
        path = tmp_path / f"file.{suffix}"
        path.write_bytes(UNREADABLE[content])
        for read in (Schedule.load, lambda path: load_plan(str(path))):
            with nothing_runs(tmp_path), pytest.raises(MorphError, match=r"file\."):
                read(path)
                raise DocumentError("file.: read, without harm")


TABLES: dict[str, tuple[str, bytes]] = {
    **{f"json, {name}": ("json", content) for name, content in UNREADABLE.items()},
    **{f"jsonl, {name}": ("jsonl", content) for name, content in UNREADABLE.items()},
    "a pickle as parquet": ("parquet", pickled(Path("executed"))),
    "half a parquet": ("parquet", b"PAR1" + b"\xff" * 100 + b"PAR1"),
    "a parquet with a long footer": ("parquet", b"PAR1" + b"\xff\xff\xff\x7fPAR1"),
    "a pickle as csv": ("csv", pickled(Path("executed"))),
    "csv with NUL bytes": ("csv", b"text\n\x00\x00\n"),
    "csv of many columns": ("csv", b",".join(b"c%d" % n for n in range(300)) + b"\n"),
    "csv without an end of a quote": ("csv", b'text\n"' + b"x" * 100_000),
    "text that is none": ("txt", bytes(range(256))),
    "text of NUL bytes": ("txt", b"\x00" * 1000),
    "an object in a column": ("jsonl", b'{"text": {"__reduce__": "os.system"}}\n'),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_are_data(tmp_path: Path, kind: str) -> None:
    suffix, content = TABLES[kind]
    path = tmp_path / f"data.{suffix}"
    path.write_bytes(content)
    with nothing_runs(tmp_path, seconds=20), pytest.raises(DataError):
        open_data(DataRequest(train_file=str(path), block_size=16)).samples(TOKENIZER)
        raise DataError("read, without harm")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    asked = DataRequest(train_file=str(folder / "a.jsonl"), block_size=16, sample_mode="continuation")
    data = open_data(asked)
    assert isinstance(data, Text)
    return write_prepared(folder / "ready", data.folders(TOKENIZER), TOKENIZER, asked).folder


@pytest.fixture
def ready(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared, tmp_path / "ready")
    return tmp_path / "ready"


def opened(folder: Path) -> None:
    data = open_data(DataRequest(dataset_name=str(folder)))
    samples = data.samples(data.tokenizer(None, None))
    for index in range(len(samples.train)):
        assert len(samples.train[index]["input_ids"])


def refused(folder: Path) -> None:
    with nothing_runs(folder.parent), pytest.raises(DataError) as caught:
        opened(folder)
    assert len(str(caught.value)) < 2000


def test_an_untouched_folder_is_read(ready: Path) -> None:
    opened(ready)


@pytest.mark.parametrize("content", UNREADABLE)
def test_descriptions_that_are_none(ready: Path, content: str) -> None:
    for name in ("meta.json", "train/meta.json"):
        kept = (ready / name).read_bytes()
        (ready / name).write_bytes(UNREADABLE[content])
        refused(ready)
        (ready / name).write_bytes(kept)


def described(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "train" / "meta.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


DESCRIPTIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "objects": lambda d: d["arrays"]["tokens"].update(dtype="|O"),
    "a type that is code": lambda d: d["arrays"]["tokens"].update(dtype="i4,("),
    "many types": lambda d: d["arrays"]["tokens"].update(dtype="i4," * 100_000),
    "a type that is a list": lambda d: d["arrays"]["tokens"].update(dtype=[["a", "O"]]),
    "a length without end": lambda d: d["arrays"]["tokens"].update(length=10**30),
    "a negative length": lambda d: d["arrays"]["tokens"].update(length=-1),
    "a length of text": lambda d: d["arrays"]["tokens"].update(length="9"),
    "a name that leads out": lambda d: d["arrays"].update({"../../../x": d["arrays"]["tokens"]}),
    "an absolute name": lambda d: d["arrays"].update({"/etc/passwd": d["arrays"]["tokens"]}),
    "a name of nothing": lambda d: d["arrays"].update({"": 1}),
    "an array too much": lambda d: d["arrays"].update(more=d["arrays"]["tokens"]),
    "no arrays": lambda d: d.update(arrays=[]),
    "blocks of nothing": lambda d: d.update(block_size=0),
    "blocks of less": lambda d: d.update(block_size=1),
    "negative blocks": lambda d: d.update(block_size=-16, mode="packing"),
    "blocks of text": lambda d: d.update(block_size="x"),
    "another mode": lambda d: d.update(mode="packing", block_size=10**9),
    "counts of text": lambda d: d["counts"].update(tokens="x"),
    "counts without end": lambda d: (d["counts"].update(tokens=10**30), d.update(mode="packing")),
    "a digest that is a list": lambda d: d["arrays"]["tokens"].update(digest=[1]),
}


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_descriptions_that_do_not_fit(ready: Path, kind: str) -> None:
    described(ready, DESCRIPTIONS[kind])
    refused(ready)


ARRAYS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "unknown tokens": ("tokens", lambda a: a * 0 + 60_000),
    "samples that begin nowhere": ("offsets", lambda a: a - 1),
    "samples in the wrong order": ("offsets", lambda a: np.concatenate([a[:1], a[1:-1][::-1], a[-1:]])),
    "samples that lie elsewhere": ("offsets", lambda a: np.concatenate([a[:1], a[1:-1] + 10**12, a[-1:]])),
    "long prompts": ("prompts", lambda a: a * 0 + 1000),
    "negative prompts": ("prompts", lambda a: a * 0 - 1),
    "texts that begin elsewhere": ("text_starts", lambda a: a + 10**9),
    "texts in the wrong order": ("text_starts", lambda a: a[::-1].copy()),
}


def rewritten(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Another array, with a digest that fits: who changes one can do that, too."""
    about = json.loads((folder / "train" / "meta.json").read_text())["arrays"][name]
    path = folder / "train" / f"{name}.bin"
    array = change(np.fromfile(path, about["dtype"]))
    with ArrayWriter(path, about["dtype"]) as writer:
        writer.append(array)
    described(folder, lambda data: data["arrays"].update({name: writer.description}))


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_that_lead_out_of_their_bounds(ready: Path, kind: str) -> None:
    rewritten(ready, *ARRAYS[kind])
    refused(ready)


def test_arrays_that_are_objects_links_or_pipes(ready: Path) -> None:
    path = ready / "train" / "tokens.bin"
    np.save(ready / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for content in ((ready / "objects.npy").read_bytes(), pickled(ready.parent / "executed"), b""):
        path.write_bytes(content)
        refused(ready)
    path.unlink()
    path.symlink_to("/etc/hostname")
    refused(ready)
    path.unlink()
    os.mkfifo(path)
    refused(ready)
    (ready / "meta.json").unlink()
    os.mkfifo(ready / "meta.json")
    refused(ready)


# ---- What `morph plot` reads ----


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    schedule = [
        {"name": "stack_layers", "value": 2, "max_wait_iters": 3},
        {"name": "change_lr", "value": 0.5, "max_wait_iters": 2},
    ]
    trainer(folder, schedule, max_steps=8, eval_steps=2, disable_tqdm=True).train()
    return folder


LEFT = ("journal.jsonl", "stats/history.jsonl", "stats/overall.json")


def drawn(folder: Path) -> int:
    with nothing_runs(folder.parent, seconds=30, megabytes=600), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of matplotlib, about numbers that no axis holds
        return plot([str(folder), "--x", "steps", "--overwrite", "-o", str(folder.parent / "picture.svg")])


@pytest.mark.parametrize("name", LEFT)
def test_files_of_a_run_that_are_none(run: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for content in UNREADABLE.values():
        (folder / name).write_bytes(content + b"\n" + content)
        assert drawn(folder) in (0, 2)


def mutated_lines(text: str, rng: random.Random) -> str:
    lines = [json.loads(line) for line in text.splitlines()] if "\n{" in text else [json.loads(text)]
    for _ in range(rng.choice([1, 2, 5])):
        holder, key = rng.choice([place for line in lines for place in _places(line)])
        holder[key] = rng.choice(VALUES)
    return "\n".join(json.dumps(line) for line in lines) + "\n"


def attacked(run: Path, folder: Path, count: int, seed: int) -> list[str]:
    found = []
    for index in range(count):
        rng = random.Random(f"{seed} {index}")
        copied = folder / "run"
        shutil.copytree(run, copied)
        path = copied / rng.choice(LEFT)
        path.write_text(mutated_lines(path.read_text(), rng), encoding="utf-8", errors="surrogatepass")
        try:
            assert drawn(copied) in (0, 2)
        except Exception as error:
            found.append(f"seed {seed}, {index}, {path.name}: {type(error).__name__}: {str(error)[:200]}")
        shutil.rmtree(copied)
    return found


def test_mutated_files_of_a_run_are_drawn_or_refused(run: Path, tmp_path: Path) -> None:
    assert not attacked(run, tmp_path, 12, 1)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_mutated_files_of_a_run_are_drawn_or_refused(run: Path, tmp_path: Path) -> None:
    assert not attacked(run, tmp_path, 1000, 2)


def test_a_folder_of_data_leads_nowhere(tmp_path: Path) -> None:
    """A page that describes a data set may name files, but not code, and none outside."""
    folder: Path = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("secret " * 100)
    (folder / "data.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\n")
    page: Mapping[str, Any] = {"configs": [{"config_name": "default", "data_files": "../secret.txt"}]}
    (folder / "README.md").write_text(f"---\n{json.dumps(page)}\n---\n")
    with nothing_runs(tmp_path, seconds=20), pytest.raises(DataError):
        open_data(DataRequest(dataset_name=str(folder), block_size=16)).samples(TOKENIZER)
