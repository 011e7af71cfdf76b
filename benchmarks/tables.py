"""Put what is kept into the docs and the README.

    python -m benchmarks.tables [--check]

A whole table stands between `<!-- table: NAME -->` and `<!-- end of table -->`, one of its cells between
`<!-- cell: NAME; ROW; COLUMN -->` and `<!-- end of cell -->`; ROW is what the row begins with.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from benchmarks.results import KEPT, Kept, mark, options_of

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_CELL = re.compile(
    r"(<!-- cell: (?P<name>[\w-]+); (?P<row>[^;]+); (?P<column>[^;]+?) -->).*?(<!-- end of cell -->)", re.DOTALL
)


def pages() -> list[Path]:
    """Where tables can be."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(text: str, kept: Path = KEPT) -> str:
    """A page with its tables and cells as they are kept.

    Raises:
        FileNotFoundError: if it asks for a table that is not kept.
        KeyError: if it asks for a cell that the table has not.
    """

    def of(found: re.Match[str]) -> Kept:
        return Kept.load(kept / f"{found['name']}.json")

    text = _BLOCK.sub(lambda block: block[1] + shown(of(block)) + block[3], text)
    return _CELL.sub(lambda found: found[1] + of(found).table.cell(found["row"], found["column"]) + found[5], text)


def asked_for(text: str) -> list[str]:
    """Names of the tables that a page shows as a whole."""
    return [block["name"] for block in _BLOCK.finditer(text)]


def shown(kept: Kept) -> str:
    """A table as a page shows it: what it tells, the figures, where they come from."""
    versions = ", ".join(f"{name} {number}" for name, number in kept.versions.items())
    made = f"`{kept.command}` ({kept.device}; {versions}; {kept.measured})"
    return f"\n{kept.table.told}\n\n{kept.table.markdown()}\n\n{made}\n\n"


def outdated(kept: Path = KEPT) -> list[str]:
    """Names of kept tables whose benchmark has changed since."""
    found = {path.stem: Kept.load(path) for path in sorted(kept.glob("*.json"))}
    return [name for name, entry in found.items() if mark(entry.module) != entry.made_by]


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page is not as it would be")
    options = parser.parse_args()
    try:
        good = put(write=not options.check)
    except (FileNotFoundError, KeyError, ValueError) as error:  # of a page, or of what is kept
        parser.error(str(error.args[0] if isinstance(error, KeyError) else error))
    sys.exit(1 if options.check and not good else 0)


def put(*, write: bool) -> bool:
    """Fill the pages, or only tell what differs; whether nothing does.

    Raises:
        FileNotFoundError, KeyError: see `filled`.
        ValueError: if a kept table cannot be read.
    """
    changed = [path for path in pages() if filled(text := path.read_text(encoding="utf-8")) != text]
    for path in changed:
        if write:
            path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {'written' if write else 'differs from what is kept'}")
    asked = {name for path in pages() for name in asked_for(path.read_text(encoding="utf-8"))}
    for name in sorted({path.stem for path in KEPT.glob("*.json")} - asked):
        print(f"{name}: no page shows it as a whole, by <!-- table: {name} --> and <!-- end of table -->")
    for name in (old := outdated()):
        print(f"{name}: its benchmark has changed since; measure again")
    return not changed and not old


if __name__ == "__main__":
    main()
