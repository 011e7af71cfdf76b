"""Put what has been trained into the docs: tables between `<!-- growth: NAME PART -->` and `<!-- end -->`; pictures.

    python -m benchmarks.growth.page [--experiment benchmarks/growth/small.yaml] [--check]

NAME is the experiment's, PART one of benchmarks.growth.tables.SECTIONS. Runs that are missing are named. The pictures
are docs/pictures/growth_NAME_flops.svg and growth_NAME_seconds.svg.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from benchmarks.growth.picture import AXES, draw
from benchmarks.growth.reading import Trained, read
from benchmarks.growth.tables import SECTIONS

HERE = Path(__file__).parent
RESULTS = HERE / "results"
ROOT = HERE.parent.parent
_PART = re.compile(r"(<!-- growth: (?P<name>[\w-]+) (?P<part>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, trained: Trained) -> str:
    """A page with the parts of one experiment as they are now.

    Raises:
        ValueError: if it asks for a part that there is not.
    """

    def part(block: re.Match[str]) -> str:
        if block["name"] != trained.experiment.name:
            return block[0]
        if block["part"] not in SECTIONS:
            raise ValueError(f"{block[1].strip()}: there is no such part; parts are {', '.join(SECTIONS)}")
        return f"{block[1]}\n{SECTIONS[block['part']](trained)}\n\n{block[4]}"

    return _PART.sub(part, text)


def experiments(text: str) -> set[str]:
    """Names of the experiments that a page asks for."""
    return {block["name"] for block in _PART.finditer(text)}


def made(trained: Trained, docs: Path) -> dict[Path, str]:
    """Every page and picture of an experiment, as it should be.

    Args:
        docs: folder of the documentation, next to the README.
    """
    pages = [docs.parent / "README.md", *sorted(docs.rglob("*.md"))]
    texts = {path: path.read_text(encoding="utf-8") for path in pages if path.exists() and "_build" not in path.parts}
    name = trained.experiment.name
    found = {path: filled(text, trained) for path, text in texts.items() if name in experiments(text)}
    return found | {docs / "pictures" / f"growth_{name}_{key}.svg": draw(trained, axis) for key, axis in AXES.items()}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--experiment", type=Path, default=HERE / "small.yaml", help="YAML; default: small.yaml")
    parser.add_argument("--results", type=Path, default=RESULTS, help="of the runs; default: benchmarks/growth/results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the pages; default: docs")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page is not as it would be")
    return parser


def main() -> None:
    options = parser().parse_args()
    try:
        trained = read(options.experiment, options.results)
        if not trained.results:
            raise ValueError(f"{options.results / trained.experiment.name}: no result of {options.experiment} is there")
        if not options.docs.is_dir():
            raise ValueError(f"--docs {options.docs}: is no folder")
        files = made(trained, options.docs)
    except (OSError, ValueError) as error:  # of files that are not there, or not what they should be
        parser().error(str(error))
    if not any(path.suffix == ".md" for path in files):
        wanted = f"<!-- growth: {trained.experiment.name} recipes --> and <!-- end -->"
        print(f"No page in {options.docs} asks for tables: put {wanted} into one. Parts: {', '.join(SECTIONS)}.")
    changed = False
    for path, text in files.items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        changed = True
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        print(f"{path}: {'differs from what has been trained' if options.check else 'written'}")
    print(SECTIONS["missing"](trained))
    sys.exit(1 if options.check and changed else 0)


if __name__ == "__main__":
    main()
