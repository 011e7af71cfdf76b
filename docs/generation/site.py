"""A Sphinx extension: the docstrings of the code, which are Markdown, as Sphinx's autodoc reads them."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_FENCE = re.compile(r"^(\s*)```(\w*)$")


def setup(app: Sphinx) -> dict[str, Any]:
    # Before napoleon, which makes paragraphs of sections such as `Args:`.
    app.connect("autodoc-process-docstring", _rewrite, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _rewrite(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = restructured(lines)


def restructured(lines: list[str]) -> list[str]:
    """Lines of Markdown with code as reStructuredText has it; all else is the same in both, as we use it."""
    found: list[str] = []
    fence: str | None = None
    for line in lines:
        if match := _FENCE.match(line):
            if fence is None:
                fence = match[1]
                found += ["", f"{fence}.. code-block:: {match[2] or 'text'}", ""]
            else:
                fence = None
                found.append("")
        elif fence is not None:
            found.append(f"   {line}" if line.strip() else line)
        else:
            found.append(_CODE.sub(r"``\1``", line))
    return found
