"""What the tests read of a report."""

from __future__ import annotations


def cells(text: str, title: str) -> list[list[str]]:
    """Rows of the table under a heading of a Markdown page, the title row first."""
    section = text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|") and not line.startswith("| ---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
