"""The pages that are generated as a whole."""

from __future__ import annotations

from pathlib import Path

from generation.api import api_page
from generation.commands import commands_page
from generation.operations import operations_page
from generation.options import options_page
from generation.plan_fields import plan_fields_page

DOCS = Path(__file__).parent.parent


def pages() -> dict[str, str]:
    """Path inside `docs/` -> text."""
    return {
        "operations.md": operations_page(),
        "reference/plan_fields.md": plan_fields_page(),
        "reference/options.md": options_page(),
        "reference/commands.md": commands_page(),
        "reference/api.md": api_page(),
    }
