"""A checkpoint that has been decided on, and may not be there yet."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainerState

from morphing_trainer.checkpoint.storage import refusal
from morphing_trainer.checkpoint.store import checkpoints
from morphing_trainer.errors import MorphError, StorageError


@dataclass(frozen=True)
class Underway:
    """A checkpoint on its way to the disk.

    Attributes:
        final: where it will stand.
        state: what callbacks are told once it is there: the run as it was then.
        best_before: `best_model_checkpoint` as it was before.
        rounds: what this rank has still to do, None where it is for others; as many rounds on every rank. One begins
            when all have done what there was in the round before. No process group is used in any.
    """

    final: Path
    state: TrainerState
    best_before: str | None
    rounds: tuple[Callable[[], None] | None, ...] = ()


def unsaved(error: BaseException, underway: Underway) -> BaseException:
    """What a save that failed raises: what the disk said, and what there is to go on from."""
    reason = None if isinstance(error, MorphError) else refusal(error)
    if reason is None:
        return error
    run, advice = underway.final.parent, "No checkpoint has been saved before."
    with suppress(OSError):
        if found := checkpoints(run):
            advice = f"{found[0].name} is there; go on from it by --resume_from_checkpoint true."
    told = StorageError(
        f"step {underway.state.global_step}: the checkpoint could not be saved in {run} ({reason}), so the run ends. "
        f"Make room, or make the folder writable. {advice}"
    )
    told.__cause__ = error
    return told
