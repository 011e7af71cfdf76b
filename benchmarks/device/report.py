"""What a measurement on a device says: goals, tables, and what is missing; as Markdown and for machines."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.device.budget import Account, Figures
from benchmarks.device.contest import BARE, TRAINER, Contest, contests
from benchmarks.device.goals import UNKNOWN, Goal, goals
from benchmarks.device.speed import CONTEST
from benchmarks.results import Table


@dataclass(frozen=True)
class Place:
    """Where it was measured.

    Attributes:
        memory: bytes of the device; None on a CPU.
        peak: TFLOP/s of dense bf16; None if unknown.
        source: who says so.
        tiny: the models are tiny, and the figures mean nothing.
    """

    device: str
    memory: int | None
    peak: float | None
    source: str
    versions: Mapping[str, str]
    command: str
    tiny: bool = False


def tables(figures: Sequence[Figures], place: Place) -> dict[str, Table]:
    """Title -> table, of what there are figures of."""
    made = {
        "Speed": _speed(contests(figures), place.peak),
        "Morphs": _morphs([each for each in figures if each["table"] == "morphs"]),
        "Morphs in a run": _in_a_run([each for each in figures if each["table"] == "in a run"]),
        "adjust_batch_size": _adjusting([each for each in figures if each["table"] == "adjusting"]),
    }
    return {title: table for title, table in made.items() if table.rows}


def _speed(found: Sequence[Contest], peak: float | None) -> Table:
    rows = []
    for contest in found:
        for kind in (kind for kind in CONTEST if kind in contest.runs):
            row = [contest.model, contest.mode, f"{contest.batch} x {contest.length}", kind]
            speed = contest.median(kind, "tokens_per_s")
            if speed is None:
                rows.append([*row, f"failed: {contest.failure(kind)}", *[UNKNOWN] * 6])
                continue
            rows.append(
                [
                    *row,
                    f"{speed:,.0f}",
                    _told(contest.mfu(kind, peak), "{:.1f} %"),
                    *("1" if kind == base else _range(contest.ratios(kind, base)) for base in (TRAINER, BARE)),
                    _gigabytes(contest.median(kind, "peak_bytes")),
                    UNKNOWN if kind == TRAINER else _told(contest.deviation(kind), "{:.1e}"),
                    str(len(contest.ratios(kind, kind))),
                ]
            )
    columns = ["model", "mode", "batch", "", "tokens/s", "MFU", "to Trainer", "to the bare loop", "peak of a step"]
    told = (
        "Training in bf16 (autocast): medians of the rounds, ratios taken round by round (with their range). MFU: "
        "FLOPs of forward and backward, counted as they run, over the seconds and the device's dense bf16 peak. Peak "
        "of a step: the most memory of tensors, model and optimizer included. Loss: the largest relative difference "
        "to the curve of Trainer."
    )
    return Table([*columns, "loss", "rounds"], rows, told)


def _morphs(found: Sequence[Figures]) -> Table:
    rows = []
    for each in found:
        row = [each["model"], f"`{each['operation']}`"]
        if "failed" in each:
            rows.append([*row, f"failed: {each['failed']}", *[UNKNOWN] * 5])
            continue
        peak = None if each["peak_bytes"] is None else each["peak_bytes"] / each["state_bytes"]
        made, state = _gigabytes(each["created_bytes"]), _gigabytes(each["state_bytes"])
        morphed, copied = each["morph_s"], each["copy_s"]
        seconds = [f"{morphed:.4f} s", f"{copied:.4f} s", f"{morphed / copied:.1f}"]
        rows.append([*row, made, state, *seconds, _told(peak, "{:.2f}")])
    told = (
        "One operation on a model with Adam's memory on the device, against copying as many bytes as it makes anew; "
        "medians. Peak: the most memory of tensors while it works, the old model included, over the new state."
    )
    columns = ["model", "operation", "made anew", "new state", "morph", "copying as much", "ratio", "peak / new state"]
    return Table(columns, rows, told)


def _in_a_run(found: Sequence[Figures]) -> Table:
    rows = [
        [
            each["model"],
            each["mode"],
            f"`{each['operation']}`",
            *(f"{each[key]:.3f} s" for key in ("operation_s", "first_step_s", "usual_step_s")),
            f"{each['first_step_s'] - each['usual_step_s']:.3f} s" if each["mode"] == "compiled" else UNKNOWN,
        ]
        for each in found
    ]
    told = (
        "Operations of a schedule in a run that goes on: the whole change, preparing included; the first step after "
        "it, which in a compiled run compiles the new model, of which nothing was compiled before; the usual step, and "
        "what the first one takes beyond it."
    )
    columns = ["model", "mode", "operation", "change", "first step after", "usual step", "recompilation"]
    return Table(columns, rows, told)


def _adjusting(found: Sequence[Figures]) -> Table:
    rows = [
        [
            each["model"],
            f"{each['asked_percent']:g} %",
            f"{each['batch']:g}",
            f"{each['trial_percent']:.1f} %",
            _told(each["run_percent"], "{:.1f} %"),
        ]
        for each in found
    ]
    told = (
        "The batch that `adjust_batch_size` picks for a share of the device's memory: a multiple of 8, a power of two "
        "where that is at most a fifth smaller. Shares in use at the peak of its trial, and in the steps after it."
    )
    return Table(["model", "asked", "batch", "trial", "steps after"], rows, told)


def markdown(account: Account, place: Place, seconds: float) -> str:
    """The report for people."""
    versions = ", ".join(f"{name} {number}" for name, number in place.versions.items())
    memory = "" if place.memory is None else f", {_gigabytes(place.memory)}"
    peak = "unknown" if place.peak is None else f"{place.peak:g} TFLOP/s ({place.source})"
    parts = [
        f"# {place.device}",
        f"{place.device}{memory}; dense bf16 peak: {peak}. {versions}.",
        f"`{place.command}`, {seconds:.0f} s.",
        *(["Tiny models, to see that the command works: their figures mean nothing."] if place.tiny else []),
    ]
    if wanted := _judged(account, place):
        rows = [[goal.name, goal.asked, goal.reached, goal.verdict] for goal in wanted]
        parts += ["## Goals", Table(["", "goal", "reached", ""], rows, "").markdown()]
    for title, table in tables(account.figures, place).items():
        parts += [f"## {title}", table.told, table.markdown()]
    for title, lines in (("Failed", account.failed), ("Left out", account.left_out)):
        if lines:
            parts += [f"## {title}", "\n".join(f"- {line}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def as_data(account: Account, place: Place, seconds: float) -> dict[str, Any]:
    """The report for machines: what was measured in SI units, and the tables as they are shown."""
    return {
        **asdict(place),
        "seconds": seconds,
        "goals": [asdict(goal) | {"verdict": goal.verdict} for goal in _judged(account, place)],
        "tables": {title: asdict(table) for title, table in tables(account.figures, place).items()},
        "failed": account.failed,
        "left_out": account.left_out,
        "figures": account.figures,
    }


def _judged(account: Account, place: Place) -> list[Goal]:
    """The goals; of a tiny model none is met or missed."""
    found = goals(account.figures, place.peak)
    return [replace(goal, met=None, why="a tiny model") for goal in found] if place.tiny else found


def _told(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else form.format(value)


def _gigabytes(value: float | None) -> str:
    if value is not None and value < 1e8:
        return f"{value / 1e6:.2f} MB"
    return _told(None if value is None else value / 1e9, "{:.2f} GB")


def _range(ratios: Sequence[float]) -> str:
    if not ratios:
        return UNKNOWN
    median = f"{statistics.median(ratios):.3f}"
    return median if len(ratios) == 1 else f"{median} ({min(ratios):.3f} to {max(ratios):.3f})"
