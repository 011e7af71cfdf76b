"""Reading YAML and JSON files as data, with the line of every entry. Nothing in a file is ever executed.

YAML is read from PyYAML's *event* stream (`SafeLoader`), so no constructor runs and a hostile file is stopped while it
is being read. Scalars follow the YAML 1.2 core schema: `1e-3` is a float, `.inf` is infinite, only `true` and `false`
are booleans (`on`, `off`, `yes`, `no` are text), `2024-01-01` is text. Merge keys (`<<: *name`) work.
JSON is Python's `json`: strict about syntax, and `NaN`, `Infinity` and `-Infinity` are numbers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from morphing_trainer.errors import MorphError, Problem

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_ALIASES = 100
MAX_VALUES = 30_000  # keys and values, with every alias written out
SUFFIXES = (".yaml", ".yml", ".json")

KeyPath = tuple[str | int, ...]


class DocumentError(MorphError):
    """A file cannot be read as YAML or JSON. The message is `file:line: what; what instead`."""


@dataclass(frozen=True)
class Document:
    """One file: plain `data`, the 1-based line of each key and item by its path, and faults that did not stop reading.

    A key given twice keeps its first value; a key that is not text is left out. Both are in `problems`.
    """

    path: str
    data: Any
    lines: Mapping[KeyPath, int]
    problems: tuple[Problem, ...]


def load_document(path: str | os.PathLike[str]) -> Document:
    """Read a `.yaml`, `.yml` or `.json` file. Raises `DocumentError` if it cannot be read at all."""
    name = os.fspath(path)
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES and not os.path.isdir(name):
        raise DocumentError(f"{name}: the suffix {suffix!r} is not known; name the file {', '.join(SUFFIXES)}")
    text = _read_text(name)
    if not text.strip():
        raise DocumentError(f"{name}: the file is empty; write a document into it")
    return _read(name, _json_events(text, name) if suffix == ".json" else _yaml_events(text, name))


def read_text(text: str, name: str) -> Document:
    """Read YAML, or JSON, from text that somebody calls `name`. Raises `DocumentError` as `load_document`."""
    return _read(name, _yaml_events(text, name))


def _read(name: str, events: Iterator[_Node]) -> Document:
    reader = _Reader(name, events)
    data = reader.read()
    return Document(name, data, reader.lines, tuple(reader.problems))


def dump_yaml(data: Any) -> str:
    """YAML text of plain data (dicts, lists, tuples, text, numbers, booleans, None) that `load_document` reads back."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def _read_text(name: str) -> str:
    """The file as text with `\\n` line ends; a byte order mark is dropped."""
    path = Path(name)
    try:
        if path.exists() and not path.is_file():  # before opening: opening a pipe would wait for a writer
            kind = "a folder" if path.is_dir() else "not a regular file"
            raise DocumentError(f"{name}: this is {kind}; give the path of a file")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise DocumentError(f"{name}: there is no such file; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        if isinstance(error, DocumentError):
            raise
        raise DocumentError(f"{name}: cannot be opened ({error}); check the path and its permissions") from error
    if len(raw) > MAX_BYTES:
        raise DocumentError(f"{name}: the file is larger than {MAX_BYTES} bytes; split it or remove what is not needed")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DocumentError(f"{name}:{line}: a byte is not UTF-8 text; save the file as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


# --- Events: both formats become the same small stream of openings, scalars, aliases and ends ---


@dataclass(frozen=True, slots=True)
class _Node:
    """An event, and the node it opens. `value` of a scalar: its value; of an alias: its name; of a composed list:
    [node]; of a composed map: [(key node, value node)]."""

    kind: Literal["scalar", "merge", "list", "map", "alias", "end"]
    line: int
    value: Any = None
    anchor: str | None = None

    @property
    def nests(self) -> bool:
        return self.kind in ("list", "map")


_CORE_SCHEMA = (  # YAML 1.2, section 10.3.2
    (re.compile(r"null|Null|NULL|~|"), lambda _: None),
    (re.compile(r"true|True|TRUE"), lambda _: True),
    (re.compile(r"false|False|FALSE"), lambda _: False),
    (re.compile(r"[-+]?[0-9]+"), int),
    (re.compile(r"0o[0-7]{1,256}"), lambda text: int(text[2:], 8)),
    (re.compile(r"0x[0-9a-fA-F]{1,256}"), lambda text: int(text[2:], 16)),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
    (re.compile(r"[-+]?\.(inf|Inf|INF)"), lambda text: float(text.replace(".", ""))),
    (re.compile(r"\.(nan|NaN|NAN)"), lambda _: float("nan")),
)


def _plain(text: str) -> Any:
    """The value of an unquoted YAML scalar. Raises ValueError for an integer of thousands of digits."""
    return next((read(text) for pattern, read in _CORE_SCHEMA if pattern.fullmatch(text)), text)


def _whole_text(text: str) -> str:
    """Join surrogate pairs written as two escapes. Raises UnicodeError (a ValueError) for half a pair."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16")


def _yaml_events(text: str, name: str) -> Iterator[_Node]:
    line = 1
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):  # type: ignore[no-untyped-call, unused-ignore]
            line = event.start_mark.line + 1 if event.start_mark else line
            if tag := getattr(event, "tag", None):
                raise DocumentError(f"{name}:{line}: the tag {tag!r} is not read; remove it, or quote text")
            match event:
                case yaml.ScalarEvent():
                    unquoted = event.implicit[0]
                    value = _plain(event.value) if unquoted else event.value
                    value = _whole_text(value) if isinstance(value, str) else value
                    merge = unquoted and value == "<<"
                    yield _Node("merge" if merge else "scalar", line, value, event.anchor)
                case yaml.SequenceStartEvent():
                    yield _Node("list", line, anchor=event.anchor)
                case yaml.MappingStartEvent():
                    yield _Node("map", line, anchor=event.anchor)
                case yaml.AliasEvent():
                    yield _Node("alias", line, event.anchor)
                case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                    yield _Node("end", line)
                case _:
                    pass  # start and end of stream and document
    except DocumentError:
        raise
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise DocumentError(f"{name}:{line}: an unprintable character is in the file; remove it") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        hint = "indent with spaces, not tabs" if "\\t" in what else "fix the YAML syntax here"
        raise DocumentError(f"{name}:{mark.line + 1 if mark else line}: {what}; {hint}") from None
    except (
        ValueError,
        OverflowError,
    ):  # such as "\Uffffffff", half a surrogate pair, an integer of thousands of digits
        raise DocumentError(f"{name}:{line}: an escape or number near here is out of range; correct it") from None


_JSON_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]|[^\s{}\[\]:,"]+')


def _json_events(text: str, name: str) -> Iterator[_Node]:
    """`json` judges the syntax of the whole first; then a walk over the tokens gives values and lines."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        what = error.msg[0].lower() + error.msg[1:]
        raise DocumentError(
            f"{name}:{error.lineno}: not JSON: {what} (column {error.colno}); "
            "JSON needs double quotes and has no comments and no trailing commas"
        ) from None
    except RecursionError:
        raise DocumentError(f"{name}: nested deeper than {MAX_DEPTH} levels; flatten it") from None
    except ValueError:  # Python's limit on the digits of an integer
        raise DocumentError(f"{name}: an integer has thousands of digits; write a shorter one") from None
    brackets = {"[": _Node("list", 0), "{": _Node("map", 0), "]": _Node("end", 0), "}": _Node("end", 0)}
    line, seen = 1, 0
    for token in _JSON_TOKEN.finditer(text):
        line, seen = line + text.count("\n", seen, token.start()), token.start()
        if bracket := brackets.get(token[0]):
            yield replace(bracket, line=line)
            continue
        value = json.loads(token[0])
        try:
            yield _Node("scalar", line, _whole_text(value) if isinstance(value, str) else value)
        except UnicodeError:
            raise DocumentError(f"{name}:{line}: a \\u escape is half of a surrogate pair; write both halves") from None


# --- Events become a tree, the tree becomes data ---


class _Reader:
    """Events -> tree (an alias shares the node it names) -> data, line of every path, problems; within the limits."""

    def __init__(self, name: str, events: Iterator[_Node]) -> None:
        self._name, self._events = name, events
        self._anchors: dict[str, _Node | None] = {}  # None: still open
        self._aliases = self._values = 0
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []

    def read(self) -> Any:
        first = next(self._events, None)
        if first is None:
            raise DocumentError(f"{self._name}: the file holds nothing but comments; write a document into it")
        root = self._compose(first, 0)
        if extra := next(self._events, None):
            raise self._error(extra, "a second document starts; keep one document per file")
        self._values = 0  # counted again with every alias written out
        return self._build(root, (), 0)

    def _compose(self, event: _Node, depth: int) -> _Node:
        self._spend(event, depth)
        if event.kind == "alias":
            return self._resolve(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        node = event
        if event.nests:
            parts = []
            while (part := next(self._events)).kind != "end":
                parts.append(self._compose(part, depth + 1))
            pairs = event.kind == "map"
            node = replace(event, value=list(zip(parts[::2], parts[1::2], strict=True)) if pairs else parts)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _resolve(self, event: _Node) -> _Node:
        self._aliases += 1
        if self._aliases > MAX_ALIASES:
            raise self._error(event, f"there are more than {MAX_ALIASES} aliases; write the values out")
        if event.value not in self._anchors:
            raise self._error(event, f"the alias *{event.value} names no earlier anchor; define &{event.value} before")
        node = self._anchors[event.value]
        if node is None:
            raise self._error(event, f"the alias *{event.value} is inside the value it names; write the value out")
        return replace(node, line=event.line)

    def _build(self, node: _Node, path: KeyPath, depth: int) -> Any:
        self.lines.setdefault(path, node.line)
        self._spend(node, depth)
        if node.kind == "list":
            return [self._build(item, (*path, index), depth + 1) for index, item in enumerate(node.value)]
        if node.kind == "map":
            data: dict[str, Any] = {}
            self._fill(data, node, path, depth, merged=False)
            return data
        return node.value

    def _fill(self, data: dict[str, Any], node: _Node, path: KeyPath, depth: int, *, merged: bool) -> None:
        """Add the pairs of `node` to `data`. Pairs of a merged mapping give way to those already there."""
        merges = []
        for key, value in node.value:
            self._spend(key, depth)
            if key.kind == "merge":
                merges.append(value)
            elif not isinstance(key.value, str):
                shown = "a list or mapping" if key.nests else _short(key.value)
                self._problem(key, f"a key must be text and this is {shown}; write it in quotes")
            elif key.value not in data:
                self.lines[(*path, key.value)] = key.line
                data[key.value] = self._build(value, (*path, key.value), depth + 1)
            elif not merged:
                first = self.lines[(*path, key.value)]
                self._problem(key, f"the key {_short(key.value)} was already given in line {first}; keep one of them")
        for merge in merges:
            for source in merge.value if merge.kind == "list" else [merge]:
                self._spend(source, depth)
                if source.kind == "map":
                    self._fill(data, source, path, depth, merged=True)
                else:
                    self._problem(source, "'<<' merges mappings only; give it an alias of a mapping")

    def _spend(self, node: _Node, depth: int) -> None:
        self._values += 1
        if depth + node.nests > MAX_DEPTH:
            raise self._error(node, f"nested deeper than {MAX_DEPTH} levels; flatten it")
        if self._values > MAX_VALUES:
            raise self._error(node, f"more than {MAX_VALUES} keys and values, aliases written out; split the file")

    def _error(self, node: _Node, what: str) -> DocumentError:
        return DocumentError(f"{self._name}:{node.line}: {what}")

    def _problem(self, node: _Node, what: str) -> None:
        self.problems.append(Problem(f"{self._name}:{node.line}", what))


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


# --- Writing ---


class _Dumper(yaml.SafeDumper):  # type: ignore[misc, unused-ignore]  # the base is untyped without types-PyYAML
    def ignore_aliases(self, data: Any) -> bool:
        return True  # a value used twice is written twice: readable, and within the alias limit


def _represent_text(dumper: Any, text: str) -> Any:
    # PyYAML would leave "1e-3" and "0o7" unquoted: YAML 1.1 takes them for text, we take them for numbers.
    # It would not escape the line breaks of Unicode, and then read them back as spaces.
    style = "'" if not isinstance(_plain(text), str) else '"' if set(text) & set("\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
