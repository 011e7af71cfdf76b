"""Links: pages, headings, and files of the repository are there. Links to elsewhere are looked at for form only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from generation.blocks import pages_of
from generation.outputs import ROOT

PAGES = [*pages_of(ROOT), *(name for name in ("CONTRIBUTING.md", "CHANGELOG.md") if (ROOT / name).exists())]
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
_URL = re.compile(r"https://[a-z0-9.-]+\.[a-z]{2,}(/[\w./~%#?=&+:@,-]*)?")


class Link(NamedTuple):
    line: int
    target: str


def links_of(text: str) -> Iterator[Link]:
    """Links and pictures outside of code."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            plain = re.sub(r"`[^`]*`", "code", line)
            yield from (Link(number, found[1]) for found in _LINK.finditer(plain))


def anchors_of(text: str) -> set[str]:
    """Headings of a page as a link names them."""
    lines, fenced = [], False
    for line in text.splitlines():
        fenced = fenced != line.lstrip().startswith("```")
        if not fenced and (found := re.match(r"#{1,6} (.+)$", line)):
            lines.append(found[1])
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", line).lower() for line in lines)
    return {re.sub(r"[^\w\- ]", "", line).strip().replace(" ", "-") for line in plain}


def faults_of(page: str, text: str, root: Path = ROOT) -> list[str]:
    """Links of a page that lead nowhere."""
    return [
        f"{page}:{link.line}: {link.target}: {what}"
        for link in links_of(text)
        if (what := _fault(page, text, link.target, root))
    ]


def _fault(page: str, text: str, target: str, root: Path) -> str:
    if "://" in target or target.startswith("mailto:"):
        return "" if _URL.fullmatch(target) else "is no https address"
    name, _, anchor = target.partition("#")
    path = (root / page).parent / name if name else root / page
    if name and not path.exists():
        return "is not there"
    if name and root.resolve() not in path.resolve().parents:
        return "is outside of the repository"
    if anchor and anchor not in anchors_of(path.read_text(encoding="utf-8") if name else text):
        return "has no such heading"
    return ""


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    assert not faults_of(page, (ROOT / page).read_text(encoding="utf-8"))


def test_links_are_found() -> None:
    count = sum(len(list(links_of((ROOT / page).read_text(encoding="utf-8")))) for page in PAGES)
    assert count > 150


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("See [this](none.md).", "is not there"),
        ("See [this](../configs/schedules/none.yaml).", "is not there"),
        ("See [this](#nowhere).", "has no such heading"),
        ("See [this](plans.md#nowhere).", "has no such heading"),
        ("![A picture](pictures/none.svg)", "is not there"),
        ("See [this](http://example.org).", "is no https address"),
        ("See [this](https://example).", "is no https address"),
        ("See [this](../../elsewhere/x.md).", "is not there"),
    ],
)
def test_a_dead_link_is_found(text: str, told: str) -> None:
    (fault,) = faults_of("docs/page.md", text)
    assert fault.endswith(told)


def test_live_links_pass() -> None:
    text = "# A *new* `head`\n[a](#a-new-head) [b](plans.md#samples) [c](../README.md) [d](https://arxiv.org/abs/1)\n`[x](y)`"
    assert not faults_of("docs/page.md", text)


def test_the_readme_links_to_the_documentation() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert any(link.target.startswith("docs/") for link in links_of(text))
