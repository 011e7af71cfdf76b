"""Reading runs to hold them against each other, however much of them is damaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from morphing_trainer.errors import ConfigError
from morphing_trainer.reporting.comparison import loss_key
from morphing_trainer.reporting.contest import TRAINING
from morphing_trainer.reporting.run_data import RunData
from morphing_trainer.run.looking import model_of
from morphing_trainer.run.reading import named, overall_of
from morphing_trainer.run.salvage import Remains, number, salvaged, whole
from morphing_trainer.run.work import stretches, with_flops, without_flops

MOST_TOKENS = 2**27
"""Longer than any sample; a file that says more is not what it claims to be."""


def contestants(folders: Sequence[str], *, flops: bool) -> tuple[list[RunData], dict[str, int | None], list[str]]:
    """The runs, name -> parameters of its model, and what else is to be said of them.

    Args:
        flops: whether floating-point operations are asked for.

    Raises:
        ConfigError: if one is no run, is named twice, or has logged nothing.
    """
    runs: list[RunData] = []
    sizes: dict[str, int | None] = {}
    remarks: list[str] = []
    vocabularies: dict[str, int] = {}
    for folder, name in named(folders):
        remains = salvaged(folder)
        if not remains.lines:
            raise ConfigError(f"{folder}: this run has not logged anything yet; wait for its first logging_steps.")
        run = RunData(name, remains.lines, tuple(remains.records))
        runs.append(_counted(folder, run, remains, remarks) if flops else run)
        sizes[name] = whole(model_of(remains).get("parameters"))
        remarks += [f"{name}: damaged: {fault}" for fault in remains.faults]
        if (vocabulary := _vocabulary(remains)) is not None:
            vocabularies[name] = vocabulary
    if len(set(vocabularies.values())) > 1:
        known = ", ".join(f"{name} {size:,}" for name, size in vocabularies.items())
        remarks.append(f"The vocabularies differ ({known}): a loss per token of one is not that of another.")
    return runs, sizes, remarks


def chosen_loss(runs: Sequence[RunData], asked: str | None, remarks: list[str]) -> str:
    """Key of the loss to compare; says in `remarks` where that is not the one that one would expect."""
    if asked == "training":
        return TRAINING
    evaluation = loss_key(runs)
    have = [run.name for run in runs if run.keys(beginning=evaluation, ending=evaluation)]
    if asked is None and len(have) < 2:
        remarks.append(
            f"The training loss is compared, because {'no run has' if not have else f'only {have[0]} has'} "
            "logged an evaluation."
        )
        return TRAINING
    return evaluation


def _counted(folder: Path, run: RunData, remains: Remains, remarks: list[str]) -> RunData:
    """With exact floating-point operations, if what it was is known without a gap."""
    damaged = any("journal" in fault for fault in remains.faults)
    try:
        if damaged:
            raise ConfigError("its journal is damaged")
        length = _length(folder, remains)
        if length is None:
            raise ConfigError("its statistics do not tell how long its samples are")
        return with_flops(run, stretches(remains.events, length))
    except ConfigError as error:
        remarks.append(f"{run.name}: its FLOPs are not known: {error}.")
        return without_flops(run)


def _length(folder: Path, remains: Remains) -> int | None:
    """Tokens of a sample, on average."""
    length = number(remains.progress.get("length"))
    told: Any = overall_of(folder).get("train")
    if length is None and isinstance(told, Mapping):
        tokens, samples = whole(told.get("tokens")), whole(told.get("samples"))
        length = tokens / samples if tokens and samples else None
    return round(length) if length is not None and 1 <= length <= MOST_TOKENS else None


def _vocabulary(remains: Remains) -> int | None:
    specs = [event["spec"] for event in remains.events if isinstance(event.get("spec"), Mapping)]
    config = specs[0].get("config") if specs else None
    return whole(config.get("vocab_size")) if isinstance(config, Mapping) else None
