"""Stories to report, and pages read back by the rules of HTML5."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import Element

import html5lib

from morphing_trainer.lineage import ModelSpec
from morphing_trainer.reporting.journal import Change
from morphing_trainer.reporting.report.page import page
from morphing_trainer.reporting.report.story import Story
from morphing_trainer.run.standing import FINISHED, Standing
from tests.reporting.pictures import lines

SPEC: dict[str, Any] = {
    "config": {"n_layer": 2, "n_embd": 16, "n_inner": None, "tie_word_embeddings": True},
    "frozen": [],
    "adapter": None,
    "divisors": {},
}


def story(**changes: Any) -> Story:
    """Of a short run that has come to its end, without an operation."""
    told = [{"event": "start", "step": 0, "spec": SPEC, "schedule": [], "settings": {"batch_size": 8, "grad_accum": 2}}]
    standing = Standing("runs/demo", state=FINISHED, step=200, end=200, ended={"event": "end", "step": 200})
    standing.model = {"layers": 2, "hidden": 16, "mlp": 64, "parameters": 1000, "trainable": 1000}
    values: dict[str, Any] = {"name": "demo", "path": "runs/demo", "standing": standing, "lines": lines()}
    return Story(**{**values, "events": told, "stages": {"train": 0.0}, **changes})


def with_operations(records: Any, **changes: Any) -> Story:
    """The same with operations."""
    return story(records=records, changes=[Change(record) for record in records], **changes)


def read(text: str) -> Element:
    """The page as a tree.

    Raises:
        html5lib.html5parser.ParseError: if it is not HTML5 to the letter.
    """
    found: Element = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)
    return found


def made(found: Story) -> Element:
    return read(page(found))


def name_of(element: Element) -> str:
    """Without its namespace."""
    return str(element.tag).rpartition("}")[2]


def all_of(tree: Element, name: str, **attributes: str) -> list[Element]:
    """Elements of this name, with these words in their attributes (`class_` is `class`)."""
    return [
        element
        for element in tree.iter()
        if name_of(element) == name
        and all(word in element.get(key.rstrip("_"), "").split() for key, word in attributes.items())
    ]


def words(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def section(tree: Element, name: str) -> Element:
    (found,) = (element for element in all_of(tree, "section") if element.get("id") == name)
    return found


def attributes(tree: Element) -> Iterator[tuple[str, str, str]]:
    """(element, attribute, value) of all."""
    for element in tree.iter():
        for key, value in element.attrib.items():
            yield name_of(element), key.rpartition("}")[2], value


def rows(table: Element) -> list[list[str]]:
    """Cells of the body of a table."""
    (body,) = all_of(table, "tbody")
    return [[words(cell) for cell in row if name_of(cell) in ("td", "th")] for row in all_of(body, "tr")]


def pairs(listed: Element) -> list[list[str]]:
    """Names and values of a list of arguments."""
    return [[words(each) for each in entry] for entry in listed]


def figure(tree: Element, label: str) -> tuple[str, str]:
    """Value and detail of a figure in the page's head."""
    (box,) = all_of(tree, "dl", class_="figures")
    for entry in box:
        term, told = list(entry)
        if words(term) == label:
            return words(told[0]), " ".join(words(each) for each in list(told)[1:])
    raise AssertionError(f"no figure {label!r}")


def spec_of(model: Any) -> dict[str, Any]:
    """What the journal of a run would say of a model."""
    return ModelSpec.of(model).to_dict()
