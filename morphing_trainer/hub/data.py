"""The data that a run was trained on, as its arguments name them: a data set of the Hub, or files of somebody's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from morphing_trainer.documents import DocumentError, load_document
from morphing_trainer.hub.names import is_of_hub

EMBEDDED = "the language reference that comes with Python"
_PLANS = Path(__file__).parents[1] / "plans"


class Source(NamedTuple):
    """One source. `on_hub`: its name is one of the Hub's; `stage`: of a plan, the stage that it is for."""

    name: str
    on_hub: bool = False
    config: str | None = None
    stage: str | None = None


def sources(arguments: Any, run: Path) -> list[Source]:
    """What the run in the folder `run` was trained on; nothing if its arguments do not say, as of a program."""
    data = arguments.get("data") if isinstance(arguments, Mapping) else None
    if not isinstance(data, Mapping):
        return []
    if data.get("plan"):
        return _planned(str(data["plan"]), run)
    config = data.get("dataset_config")
    named = data.get("dataset_name") or data.get("train_file")
    return [_source(named, run, str(config) if config else None)]


def _source(name: Any, run: Path, config: str | None, stage: str | None = None) -> Source:
    if name in (None, "demo"):
        return Source(EMBEDDED, stage=stage)
    if isinstance(name, str) and not Path(name).suffix and is_of_hub(name, run):
        return Source(name, True, config, stage)
    names = [name] if isinstance(name, str) else [str(each) for each in name]
    files = ", ".join(Path(each).name for each in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return Source(f"files of its author's own ({files}{more})", stage=stage)


def _planned(plan: str, run: Path) -> list[Source]:
    """Stage by stage, if the plan can still be read."""
    path = _PLANS / f"{plan}.yaml" if "/" not in plan and not Path(plan).suffix else Path(plan)
    try:
        stages = load_document(path).data
        found = []
        for stage, fields in stages.items():
            for part in fields.get("mix") or [fields]:
                config = part.get("config") or part.get("dataset_config")
                found.append(_source(part.get("dataset"), run, str(config) if config else None, str(stage)))
        return found
    except (DocumentError, OSError, AttributeError, TypeError):
        return [Source(f"a training plan ({Path(plan).name})")]
