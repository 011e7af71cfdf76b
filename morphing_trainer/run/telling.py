"""Reading all that a report tells of a run: however much of it is damaged, also while it trains, and without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from morphing_trainer.reading import read_json
from morphing_trainer.reporting.journal import Change
from morphing_trainer.reporting.records import Record
from morphing_trainer.reporting.report.story import Story
from morphing_trainer.reporting.run_data import is_number
from morphing_trainer.run.changes import changes_of
from morphing_trainer.run.folder import EXAMPLES, MODEL, SETUP, STATS, WORK
from morphing_trainer.run.holding import holder
from morphing_trainer.run.looking import check_no_checkpoint, standing_of
from morphing_trainer.run.reading import overall_of, stages_of
from morphing_trainer.run.salvage import Remains, number, salvaged, whole
from morphing_trainer.run.shown import read_examples
from morphing_trainer.run.standing import advice
from morphing_trainer.run.stretches import fits, read_work, spent


def story(folder: Path, *, over: bool = False) -> Story:
    """What there is to tell of the run in `folder`.

    Args:
        over: the run has come to its end, in this process, which still holds its lock.

    Raises:
        ConfigError: if it is no run.
    """
    check_no_checkpoint(folder)
    process = None if over else holder(folder)
    remains = salvaged(folder)
    standing = standing_of(folder, remains, process)
    standing.quiet, standing.advice = None, []  # the page is of the run, not of the moment at which it is made
    standing.advice = advice(standing)
    standing.model = {name: size for name, value in standing.model.items() if (size := whole(value)) is not None}
    overall = overall_of(folder)
    examples = _examples(folder, remains)
    flops, exact = _flops(folder, remains)
    return Story(
        name=folder.resolve().name,
        path=str(folder),
        standing=standing,
        lines=remains.lines,
        changes=_changes(remains),
        records=[record for record in remains.records if _placed(record)],
        events=remains.events,
        stages=_stages(remains, overall),
        timing=_timing(overall),
        totals=overall["train"] if isinstance(overall.get("train"), Mapping) else {},
        setup=_setup(folder, remains),
        examples=examples,
        tokenizer=(folder / MODEL / "tokenizer_config.json").is_file(),
        flops=flops,
        exact=exact,
        faults=remains.faults,
    )


def _changes(remains: Remains) -> list[Change]:
    try:
        found = changes_of(remains.events, remains.told)
    except (ValueError, TypeError, LookupError) as error:
        remains.faults.append(f"the journal's operations cannot be told ({error})")
        return []
    return [change for change in found if _placed(change.record)]


def _placed(record: Record) -> bool:
    """Whether its numbers are such as a run may have."""
    sound = whole(record.step) is not None and whole(record.tokens) is not None
    return sound and 0 <= record.seconds < math.inf and type(record.step) is int


def _stages(remains: Remains, overall: Mapping[str, Any]) -> dict[str, float]:
    known = overall.get("stages")
    steps = {name: whole(step) for name, step in known.items()} if isinstance(known, Mapping) else {}
    return stages_of(remains.lines, {name: step for name, step in steps.items() if step is not None})


def _timing(overall: Mapping[str, Any]) -> dict[str, float]:
    """Part -> seconds."""
    told = overall.get("timing")
    entries = told.items() if isinstance(told, Mapping) else ()
    times = {str(part): number(entry.get("seconds")) for part, entry in entries if isinstance(entry, Mapping)}
    return {part: seconds for part, seconds in times.items() if seconds is not None and 0 <= seconds < 1e12}


def _setup(folder: Path, remains: Remains) -> dict[str, Any]:
    path = folder / STATS / SETUP
    if not path.exists():
        return {}
    try:
        found = read_json(path)
        if not isinstance(found, dict):
            raise ValueError("is not what a run writes there")
    except (OSError, ValueError) as error:
        remains.faults.append(f"{STATS}/{SETUP} cannot be read ({error})")
        return {}
    return found


def _examples(folder: Path, remains: Remains) -> list[dict[str, Any]]:
    path = folder / STATS / EXAMPLES
    if not path.is_file():
        return []
    try:
        found, faults = read_examples(path)
    except OSError as error:
        remains.faults.append(f"{STATS}/{EXAMPLES} cannot be read ({error.strerror or error})")
        return []
    if faults:
        remains.faults.append(f"{STATS}/{EXAMPLES}: {len(faults)} damaged and left out, the first is line {faults[0]}")
    return found


def _flops(folder: Path, remains: Remains) -> tuple[float | None, bool]:
    """Floating-point operations, and whether they are exact."""
    phases = read_work(folder / STATS / WORK)
    tokens = next((line["tokens"] for line in reversed(remains.lines) if is_number(line.get("tokens"))), None)
    if phases and tokens is not None and fits(phases, remains.records):
        return spent(float(tokens), phases), True
    estimate = next((line["total_flos"] for line in reversed(remains.lines) if is_number(line.get("total_flos"))), None)
    return (None if estimate is None else float(estimate)), False
