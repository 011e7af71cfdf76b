"""JSON Schemas of schedules and training plans, for editors: made from the classes that read them.

`schedule.json` and `plan.json` are written by `docs/generate.py`.
"""

from __future__ import annotations

from pathlib import Path

FILES = {kind: Path(__file__).with_name(f"{kind}.json") for kind in ("schedule", "plan")}
"""What it is for -> the file that comes with the library."""
