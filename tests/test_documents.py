from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from morphing_trainer import documents
from morphing_trainer.documents import Document, DocumentError, dump_yaml, load_document
from morphing_trainer.errors import MorphError, Problem


def load(folder: Path, text: str | bytes, name: str = "doc.yaml") -> Document:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_document(path)


def refused(folder: Path, text: str | bytes, name: str = "doc.yaml") -> str:
    with pytest.raises(DocumentError) as caught:
        load(folder, text, name)
    message = str(caught.value)
    assert message.startswith(str(folder / name)) and ";" in message, message
    return message.removeprefix(str(folder / name))


PLAIN = """\
# a schedule
- name: change_lr
  value: 2.0
  trigger_loss: .inf
  reevaluate: false

- name: stack_layers
  value:
    - 0
    - 0
  desc: on
"""


def test_plain_schedule_with_lines(tmp_path: Path) -> None:
    document = load(tmp_path, PLAIN)
    assert document.path == str(tmp_path / "doc.yaml")
    assert document.problems == ()
    assert document.data == [
        {"name": "change_lr", "value": 2.0, "trigger_loss": math.inf, "reevaluate": False},
        {"name": "stack_layers", "value": [0, 0], "desc": "on"},
    ]
    assert document.lines == {
        (): 2,
        (0,): 2,
        (0, "name"): 2,
        (0, "value"): 3,
        (0, "trigger_loss"): 4,
        (0, "reevaluate"): 5,
        (1,): 7,
        (1, "name"): 7,
        (1, "value"): 8,
        (1, "value", 0): 9,
        (1, "value", 1): 10,
        (1, "desc"): 11,
    }


def test_the_same_in_json(tmp_path: Path) -> None:
    text = '[\n\t{"name": "a",\r\n\t"trigger_loss":\n\tInfinity, "low": -Infinity},\n\n  {"value": [1,\n2.5e4]}\n]\n'
    document = load(tmp_path, text, "doc.JSON")
    assert document.data == [{"name": "a", "trigger_loss": math.inf, "low": -math.inf}, {"value": [1, 25000.0]}]
    assert document.lines == {
        (): 1,
        (0,): 2,
        (0, "name"): 2,
        (0, "trigger_loss"): 3,
        (0, "low"): 4,
        (1,): 6,
        (1, "value"): 6,
        (1, "value", 0): 6,
        (1, "value", 1): 7,
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1e6", 1e6),
        ("2.5e4", 2.5e4),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.INF", -math.inf),
        ("+.inf", math.inf),
        ("-7", -7),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("~", None),
        ("null", None),
        ("", None),
        ("True", True),
        ("FALSE", False),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("NO", "NO"),
        ("y", "y"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("<<", "<<"),
        ("'1e-3'", "1e-3"),
        ('"true"', "true"),
        (r'"\ud83d\ude00 \u00e9"', "😀 é"),
        ("[1, 'a', {b: c}]", [1, "a", {"b": "c"}]),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_yaml_scalars_are_read_as_yaml_1_2(tmp_path: Path, text: str, value: Any) -> None:
    data = load(tmp_path, f"key: {text}\n").data
    assert data == {"key": value}
    assert type(data["key"]) is type(value)


def test_nan(tmp_path: Path) -> None:
    assert math.isnan(load(tmp_path, "- .nan").data[0])
    assert math.isnan(load(tmp_path, "[NaN]", "doc.json").data[0])


def test_json_text_is_right(tmp_path: Path) -> None:
    text = r'{"a\ud83d\ude00": "\u00e9\t\/\\\" {[,:]} é", "<<": "=", "on": "1e-3", "": null}'
    document = load(tmp_path, text, "doc.json")
    assert document.data == json.loads(text)
    assert ("a😀",) in document.lines and ("<<",) in document.lines


def test_a_long_key_and_a_colon_on_the_next_line_are_json(tmp_path: Path) -> None:
    key = "k" * 3000
    document = load(tmp_path, f'{{"{key}"\n\n:\n1}}', "doc.json")
    assert document.data == {key: 1} and document.lines[(key,)] == 1


@pytest.mark.parametrize("name", ["doc.yaml", "doc.json"])
def test_duplicate_keys_are_problems_and_the_first_counts(tmp_path: Path, name: str) -> None:
    document = load(tmp_path, '{"a": {"b": 1,\n"b": 2},\n"c": 3,\n"a": {"d": 4}}', name)
    where = str(tmp_path / name)
    assert document.problems == (
        Problem(f"{where}:2", "the key 'b' was already given in line 1; keep one of them"),
        Problem(f"{where}:4", "the key 'a' was already given in line 1; keep one of them"),
    )
    assert document.data == {"a": {"b": 1}, "c": 3}
    assert ("a", "d") not in document.lines


def test_keys_that_are_not_text_are_problems(tmp_path: Path) -> None:
    document = load(tmp_path, "1: a\ntrue: b\n~: c\n? [x]\n: d\nfine: e\n")
    assert document.data == {"fine": "e"}
    assert [problem.where.rsplit(":", 1)[1] for problem in document.problems] == ["1", "2", "3", "4"]
    assert "this is True; write it in quotes" in document.problems[1].what
    assert "a list or mapping" in document.problems[3].what


def test_aliases_and_merge_keys(tmp_path: Path) -> None:
    text = "base: &base\n  a: 1\n  b: 2\nmine:\n  b: 3\n  <<: *base\nboth: {<<: [*base, {a: 9, c: 9}]}\nsame: *base\n"
    document = load(tmp_path, text)
    assert document.problems == ()
    assert document.data["mine"] == {"a": 1, "b": 3}
    assert document.data["both"] == {"a": 1, "b": 2, "c": 9}
    assert document.data["same"] == {"a": 1, "b": 2}
    assert document.data["same"] is not document.data["base"]
    assert document.lines[("mine", "b")] == 5 and document.lines[("mine", "a")] == 2
    assert document.lines[("same",)] == 8 and document.lines[("same", "a")] == 2
    assert load(tmp_path, "x: &x [1, 2]\ny: [*x,\n *x]\n").lines[("y", 1)] == 3
    assert "'<<' merges mappings only" in load(tmp_path, "<<: 1").problems[0].what


LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 11))
MERGED_LAUGHS = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 11)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": the file is empty"),
        (" \n\n", ": the file is empty"),
        ("# nothing\n", ": the file holds nothing but comments"),
        ("a: 1\nb: c: d\n", ":2: mapping values are not allowed here; fix the YAML syntax"),
        ("a:\n\tb: 1\n", ":2: while scanning for the next token, found character '\\t'"),
        ("a: [1, 2\n", ":2: while parsing a flow sequence"),
        ("a: 1\n---\nb: 2\n", ":3: a second document starts"),
        (
            "a: !!python/object/apply:os.system [echo]\n",
            ":1: the tag 'tag:yaml.org,2002:python/object/apply:os.system'",
        ),
        ("a: !!python/name:os.system\n", ":1: the tag"),
        ("- 1\n- !!binary aGk=\n", ":2: the tag"),
        ("- !mine {}\n", ":1: the tag '!mine' is not read"),
        ("!!set {a}\n", ":1: the tag"),
        ("- *nowhere\n", ":1: the alias *nowhere names no earlier anchor"),
        ("- &me\n  - *me\n", ":2: the alias *me is inside the value it names"),
        ("a: &a [1]\nb: [" + "*a, " * 100 + "*a]\n", ":2: there are more than 100 aliases"),
        (LAUGHS, "more than 30000 keys and values, aliases written out"),
        (MERGED_LAUGHS, "more than 30000 keys and values, aliases written out"),
        ("[" * 33 + "]" * 33, ":1: nested deeper than 32 levels"),
        ("[" * 100_000, ":1: nested deeper than 32 levels"),
        ("- " * 1000 + "x", ":1: nested deeper than 32 levels"),
        ("{a: " * 40 + "}" * 40, ":1: nested deeper than 32 levels"),
        ("- x\n" * 100_001, ":30000: more than 30000 keys and values"),
        ("#" * (documents.MAX_BYTES + 1), ": the file is larger than 1048576 bytes"),
        (b"a: 1\nb: \xff\n", ":2: a byte is not UTF-8"),
        ("a: 1\nb: \x07\n", ":2: an unprintable character"),
        ('a: 1\nb: "\\Uffffffff"\n', ": an escape or number near here is out of range"),
        ('- "\\ud83d"\n', ": an escape or number near here is out of range"),
        ("- " + "9" * 5000, ": an escape or number near here is out of range"),
    ],
)
def test_yaml_that_cannot_be_read(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert message in refused(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": the file is empty"),
        ('{"a": 1,\n}', ":2: not JSON: "),
        ("[1,\n2] # no", ":2: not JSON: extra data"),
        ("{'a': 1}", ":1: not JSON: "),
        ("a: 1", ":1: not JSON: "),
        ('["raw\ttab"]', ":1: not JSON: invalid control character"),
        ("[1] [2]", ":1: not JSON: "),
        ('[1,\n"\\ud83d"]', ":2: a \\u escape is half of a surrogate pair"),
        ("[" * 33 + "]" * 33, ":1: nested deeper than 32 levels"),
        ("[" * 100_000 + "]" * 100_000, ": nested deeper than 32 levels"),
        ("[" + "0," * 100_000 + "0]", ":1: more than 30000 keys and values"),
        ("[" + "9" * 5000 + "]", ": an integer has thousands of digits"),
    ],
)
def test_json_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    assert message in refused(tmp_path, text, "doc.json")


def test_limits_are_reached_not_crossed(tmp_path: Path) -> None:
    for name in ("doc.yaml", "doc.json"):
        assert load(tmp_path, "[" * 32 + "]" * 32, name).lines[(0,) * 31] == 1
    assert load(tmp_path, "a: &a 1\nb: [" + "*a, " * 100 + "]\n").data["b"] == [1] * 100
    deep = "a: &a " + "[" * 20 + "]" * 20 + "\nb: " + "[" * 20 + "*a" + "]" * 20
    assert "nested deeper" in refused(tmp_path, deep)  # only with the alias written out


def test_nothing_is_ever_constructed(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    refused(tmp_path, f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{target}']]")
    assert not target.exists()


def test_paths_that_are_no_readable_file(tmp_path: Path) -> None:
    def message(path: str | Path) -> str:
        with pytest.raises(DocumentError) as caught:
            load_document(path)
        assert isinstance(caught.value, MorphError) and isinstance(caught.value, ValueError)
        return str(caught.value)

    assert "there is no such file; check the path" in message(tmp_path / "absent.yaml")
    assert "the suffix '.toml' is not known; name the file .yaml, .yml, .json" in message(tmp_path / "doc.toml")
    assert "the suffix ''" in message(tmp_path / "doc")
    (tmp_path / "folder.yml").mkdir()
    assert "this is a folder" in message(tmp_path / "folder.yml")
    assert "this is a folder; give the path of a file" in message(tmp_path)
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "not a regular file" in message(tmp_path / "pipe.yaml")
    assert "cannot be opened" in message("nul\0byte.yaml")
    assert "cannot be opened" in message(tmp_path / ("n" * 300 + ".yaml"))
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    assert "cannot be opened" in message(tmp_path / "loop.yaml")


def test_an_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.yaml"
    path.write_text("a: 1")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(DocumentError, match="cannot be opened"):
        load_document(path)


def test_byte_order_mark_and_line_ends(tmp_path: Path) -> None:
    for name in ("doc.yaml", "doc.json"):
        document = load(tmp_path, b'\xef\xbb\xbf{"a": 1,\r\n"b": 2,\r"c": 3}', name)
        assert document.data == {"a": 1, "b": 2, "c": 3}
        assert [document.lines[(key,)] for key in "abc"] == [1, 2, 3]


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(
        [
            "1e-3",
            "0o7",
            "on",
            "<<",
            "=",
            ".inf",
            "~",
            "",
            "2024-01-01",
            "!x",
            "&a",
            "*a",
            "012",
            "a: b",
            "\x85",
            "\u2028 x",
            "\ufeff",
        ]
    )
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SCALARS.map(str), inner, max_size=4)
)
MANY = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def paths(data: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return {path}.union(*(paths(value, (*path, key)) for key, value in items))


@MANY
@given(TREES, st.sampled_from([None, 1]))
def test_any_json_reads_as_json_does(tmp_path: Path, data: Any, indent: int | None) -> None:
    text = json.dumps(data, indent=indent)
    document = load(tmp_path, text, "doc.json")
    assert document.data == data and document.problems == ()
    assert set(document.lines) == paths(data)


@MANY
@given(TREES)
def test_what_is_dumped_is_read_back(tmp_path: Path, data: Any) -> None:
    text = dump_yaml(data)
    document = load(tmp_path, text)
    assert document.data == data and document.problems == ()
    assert set(document.lines) == paths(data)


def test_dump_is_readable() -> None:
    shared = [1, 1e-5]
    assert dump_yaml({"b": shared, "a": (2, math.inf), "c": shared, "d": "1e-3"}) == (
        "b:\n- 1\n- 1.0e-05\na:\n- 2\n- .inf\nc:\n- 1\n- 1.0e-05\nd: '1e-3'\n"
    )


@pytest.mark.parametrize("name", ["doc.yaml", "doc.json"])
def test_damaged_files_never_raise_anything_else(tmp_path: Path, name: str) -> None:
    draw = random.Random(0)
    data = [{"name": "a", "value": [1, {"b": 1e-3}], "when": {"any": [{"x": "é"}]}}] * 3
    whole = json.dumps(data, indent=1) if name == "doc.json" else PLAIN + "- {x: &x [1], <<: {y: *x}, z: !!str a}\n"
    pieces = [
        *"[]{}:,-&*!|>'\"\\#%@`~\n\t \0\x85<",
        "<<: ",
        "*x",
        "&x ",
        "!!python/name:os",
        "---\n",
        "\\ud800",
        "é",
        "9e9",
    ]
    outcomes: set[type] = set()
    for _ in range(600):
        text = list(whole)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(text))
            text[at : at + draw.randint(0, 3)] = draw.choice(pieces)
        try:
            outcomes.add(type(load(tmp_path, "".join(text), name)))
        except DocumentError as error:
            outcomes.add(type(error))
            assert str(tmp_path / name) in str(error)
    assert outcomes == {Document, DocumentError}
