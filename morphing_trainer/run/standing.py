"""Where a run stands, and what to do about it: plain values. `run.looking` finds them out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

RUNNING, FINISHED, INTERRUPTED, FAILED, KILLED, EMPTY = (
    *("running", "finished", "interrupted", "failed", "killed", "not begun"),
)
"""States of a run. The last four have not come to the end of it."""

_SILENT = 600.0
"""Seconds of silence after which a run may be stuck, if it writes more often than that."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint; `fault`: what is wrong with it, as far as was looked."""

    name: str
    step: int
    fault: str | None = None


@dataclass
class Standing:
    """Where a run stands. What is not known is None.

    Attributes:
        run: its folder.
        state: `running`, `finished`, `interrupted`, `failed`, `killed` (it ended without a word) or `not begun`.
        process: that trains; 0 if only that there is one is known.
        ended: the event with which it ended, and `error` if it failed.
        quiet: seconds since it has written anything.
        step, end: optimizer steps done, as of the last log line, and of the whole run.
        model: shape and size.
        loss, evaluation, best: of the training, of the last evaluation and of the best one: `step` and `loss`.
        last, next: operations; of the next one, what it waits for.
        undone: operations that were rolled back.
        steps_per_second, tokens_per_second, left: speed over the last log lines, and seconds left at it.
        saved: checkpoints, newest first. `verified`: all their files have been hashed.
        result: the folder of the model that it has saved at its end.
        faults: what of the folder could not be read.
    """

    run: str
    state: str = EMPTY
    process: int | None = None
    ended: dict[str, Any] | None = None
    quiet: float | None = None
    step: int = 0
    end: int | None = None
    epoch: float | None = None
    tokens: int | None = None
    seconds: float | None = None
    stage: str | None = None
    stages: list[str] = field(default_factory=list)
    model: dict[str, Any] = field(default_factory=dict)
    learning_rate: float | None = None
    loss: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    operations: int = 0
    undone: int = 0
    last: dict[str, Any] | None = None
    next: dict[str, Any] | None = None
    steps_per_second: float | None = None
    tokens_per_second: float | None = None
    left: float | None = None
    saved: list[Saved] = field(default_factory=list)
    verified: bool = False
    result: str | None = None
    advice: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def well(self) -> bool:
        """Whether nobody has to do anything: it trains, or has come to its end."""
        damaged = self.verified and any(saved.fault for saved in self.saved)
        return self.state in (RUNNING, FINISHED) and not damaged

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def advice(found: Standing) -> list[str]:
    """What to do next, a sentence each."""
    sound = next((saved for saved in found.saved if saved.fault is None), None)
    told = []
    if found.state == FINISHED:
        if found.result:
            told.append(f"Nothing is left to do; its model is in {found.run}/{found.result}.")
        elif sound:
            told.append(
                "Its model has not been saved at the end; to save it, give the command that it was started with, and "
                "--resume_from_checkpoint true."
            )
    elif found.state == RUNNING:
        if found.quiet is not None and found.quiet > max(_SILENT, 20 * _between(found)):
            told.append("It has written nothing for long; see whether it is stuck.")
    elif found.state == FAILED and found.ended and found.ended.get("error"):
        told.append("See to what it failed of (above), then go on.")
    if sound and found.state not in (RUNNING, FINISHED):
        lost = found.step - sound.step
        again = f"; {lost:,} {'steps are' if lost > 1 else 'step is'} trained again" if lost > 0 else ""
        told.append(
            "Go on with it: the command that it was started with, and --resume_from_checkpoint true (it takes "
            f"{sound.name}{again})."
        )
    elif found.saved and found.state not in (RUNNING, FINISHED):
        told.append("All its checkpoints are damaged, so it cannot go on; start anew with --overwrite_output_dir.")
    elif found.state not in (RUNNING, FINISHED):
        told.append(
            "It has saved no checkpoint, so it begins anew: the command that it was started with, and "
            "--resume_from_checkpoint auto."
        )
    if damaged := [saved.name for saved in found.saved if saved.fault]:
        are, them = ("are", "them") if len(damaged) > 1 else ("is", "it")
        told.append(f"{', '.join(damaged)} {are} damaged; a resume passes over {them}.")
    return told


def _between(found: Standing) -> float:
    """Seconds between log lines, about."""
    return 1 / found.steps_per_second if found.steps_per_second else 0.0
