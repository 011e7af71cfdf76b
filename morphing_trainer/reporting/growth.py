"""What operations did to a model: of which kind each was, and how large the model was over the run."""

from __future__ import annotations

from collections.abc import Sequence

from morphing_trainer.reporting.adapters import adapter_changes
from morphing_trainer.reporting.records import Record
from morphing_trainer.reporting.series import Points

ARCHITECTURE, FREEZING, SETTINGS = "architecture", "freezing", "settings"
WORDS = {
    ARCHITECTURE: "architecture changes",
    FREEZING: "freezing or thawing",
    SETTINGS: "hyper-parameter changes",
}


def kind_of(record: Record) -> str:
    """One of the three, by what the operation changed."""
    before, after = record.before, record.after
    if any(before.get(key) != after.get(key) for key in ("layers", "hidden", "mlp", "parameters")):
        return ARCHITECTURE
    # By name as well: a merge after which the adapters start anew leaves every number as it was.
    if adapter_changes(before, after) or "lora" in record.operation.split("_"):
        return ARCHITECTURE
    return FREEZING if before.get("trainable") != after.get("trainable") else SETTINGS


def sizes(records: Sequence[Record], places: Sequence[float], end: float) -> dict[str, Points]:
    """Parameters, and trainable parameters where they differ, as steps from 0 to `end`. Empty if not known.

    Args:
        places: of the operations on the x axis.
    """
    found: dict[str, Points] = {}
    for key in ("parameters", "trainable"):
        known = [
            (record, at)
            for record, at in zip(records, places, strict=True)
            if key in record.before and key in record.after
        ]
        if known:
            found[key] = [(0.0, known[0][0].before[key]), *((at, record.after[key]) for record, at in known)]
            found[key].append((max(end, found[key][-1][0]), found[key][-1][1]))
    if found.get("trainable") == found.get("parameters"):
        found.pop("trainable", None)
    return found
