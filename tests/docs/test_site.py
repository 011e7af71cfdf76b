"""The site builds without a warning, from a clean folder, and can be read without a network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from generation.outputs import ROOT

OUTSIDE = re.compile(
    r"<(?:script|img|iframe|source)[^>]+src=\"(?:https?:)?//|<link[^>]+rel=\"stylesheet\"[^>]+href=\"(?:https?:)?//"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(folder / "doctrees")]
    built = subprocess.run(
        [*command, str(ROOT / "docs"), str(folder / "html")], capture_output=True, text=True, timeout=120, check=False
    )
    assert built.returncode == 0, built.stderr
    return folder / "html"


def test_every_page_is_there_and_in_the_menu(site: Path) -> None:
    sources = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts]
    menu = (site / "index.html").read_text(encoding="utf-8")
    assert len(sources) > 20
    for source in sources:
        page = source.with_suffix(".html")
        assert (site / page).is_file()
        assert f'href="{page}"' in menu or str(page) == "index.html", f"{page} is not in the menu"


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert not [page.name for page in pages if OUTSIDE.search(page.read_text(encoding="utf-8"))]
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert not [style for style in styles if re.search(r"url\(['\"]?https?:|@import", style)]


def test_pictures_and_files_go_along(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for source in re.findall(r'(?:<img[^>]+src|<a class="reference download[^>]+href)="([^"]+)"', text):
            assert (page.parent / source).exists(), f"{page.name}: {source}"
    quickstart = (site / "quickstart.html").read_text(encoding="utf-8")
    assert re.search(r'href="_downloads/[^"]+/demo.yaml"', quickstart)


def test_every_page_says_for_whom_it_is() -> None:
    for path in (ROOT / "docs").rglob("*.md"):
        if "_build" in path.parts:
            continue
        text = re.sub(r"\A---\n.*?\n---\n+", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        paragraphs = [part for part in text.split("\n\n") if not part.startswith("<!--")]
        opening = next(part for part in paragraphs if not part.startswith("#"))
        opening = opening.split("\n", 1)[1] if opening.startswith("# ") else opening
        assert re.match(r"\*For (who|everybody|people)", opening), f"{path.name}: {opening[:80]!r}"
