"""Whether a guarded operation has worked out: plain values and pure functions, saved with every checkpoint.

closed -- operation --> open -- a loss that is low enough --> closed
                         |
                         +-- none of them in time ----------> the run goes back to before the operation, or ends
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from morphing_trainer.schedule_entry import GuardTerms


class Verdict(Enum):
    """What an evaluation means for the guard that is open."""

    OPEN = "open"
    WELL = "well"
    FAILED = "failed"


@dataclass(frozen=True)
class Guard:
    """A guard that is open.

    Attributes:
        index: number of its operation in the schedule.
        operation: name of it.
        step: optimizer step at which it was applied.
        before: raw evaluation loss right before it.
        limit: the highest loss that closes the guard well; NaN or infinite where `before` is, and then none does.
        deadline: optimizer step at which the last evaluation that counts is made, unless the run or stage ends before.
        stops: the run ends if it has not worked out; else it goes back.
        checkpoint: folder name of the state from before.
        best: folder name of the best checkpoint of then, if that is another.
    """

    index: int
    operation: str
    step: int
    before: float
    limit: float
    deadline: int
    stops: bool
    checkpoint: str
    best: str | None = None

    @classmethod
    def over(
        cls,
        terms: GuardTerms,
        *,
        index: int,
        operation: str,
        step: int,
        before: float,
        checkpoint: str,
        best: str | None,
    ) -> Guard:
        """The guard that `terms` ask for, over an operation that is about to be applied."""
        return cls(
            index=index,
            operation=operation,
            step=step,
            before=before,
            limit=before + terms.max_loss_increase,
            deadline=step + terms.within_steps,
            stops=terms.otherwise == "stop",
            checkpoint=checkpoint,
            best=best if best != checkpoint else None,
        )

    def judged(self, step: int, loss: float, *, last: bool = False) -> Verdict:
        """What an evaluation at `step` means.

        Args:
            loss: the raw one. NaN and infinity are no loss that has come back.
            last: there will be no other evaluation that can be compared with this one.
        """
        if step <= self.step:  # shows what the operation did at once, and nothing of what comes of it
            return Verdict.OPEN
        if math.isfinite(loss) and loss <= self.limit and math.isfinite(self.limit):
            return Verdict.WELL
        return Verdict.FAILED if last or step >= self.deadline else Verdict.OPEN

    @property
    def kept(self) -> tuple[str, ...]:
        """Folder names of the checkpoints that must not go while the guard is open."""
        return (self.checkpoint,) if self.best is None else (self.checkpoint, self.best)

    def told(self, step: int, loss: float | None, reason: str = "") -> str:
        """What became of the operation, for a message: sentences without the last full stop.

        Args:
            loss: that of the last evaluation; None if there is none.
            reason: a clause that says why no evaluation is waited for.
        """
        what = f"{self.operation} of step {self.step} has not worked out by step {step}"
        before = f"The evaluation loss was {self.before:.4f} before it"
        if reason:
            return f"{what}. {before}; {reason}"
        now = "is not known" if loss is None else f"is {loss:.4f} now"
        return f"{what}. {before} and {now}; the guard allows {self.limit:.4f} at most"

    def to_dict(self) -> dict[str, Any]:
        return {name: _written(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Guard:
        """Rebuild what `to_dict` wrote. Raises KeyError, TypeError or ValueError if it is malformed."""
        return cls(
            index=int(data["index"]),
            operation=str(data["operation"]),
            step=int(data["step"]),
            before=float(data["before"]),
            limit=float(data["limit"]),
            deadline=int(data["deadline"]),
            stops=bool(data["stops"]),
            checkpoint=_folder(data["checkpoint"]),
            best=None if data["best"] is None else _folder(data["best"]),
        )


@dataclass(frozen=True)
class BadSteps:
    """Steps whose loss or gradient was NaN or infinite.

    Attributes:
        skipped: updates that were left out, in all.
        streak: how many of them in a row, up to the last step.
        known: steps that the run went back for; their updates are left out when it comes to them again.
        returns: how often it went back to the checkpoint of step `to` without one being saved since.
    """

    skipped: int = 0
    streak: int = 0
    known: tuple[int, ...] = ()
    returns: int = 0
    to: int = -1

    def left_out(self) -> BadSteps:
        """An update has been left out."""
        return BadSteps(self.skipped + 1, self.streak + 1, self.known, self.returns, self.to)

    def made(self) -> BadSteps:
        """An update has been made."""
        return BadSteps(self.skipped, 0, self.known, self.returns, self.to) if self.streak else self

    def going_back(self, bad: int, to: int) -> BadSteps:
        """The run goes back from step `bad` to the checkpoint of step `to`."""
        known = tuple(sorted({*self.known, bad}))
        return BadSteps(self.skipped, 0, known, self.returns + 1 if to == self.to else 1, to)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "known": list(self.known)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BadSteps:
        """Rebuild what `to_dict` wrote. Raises KeyError, TypeError or ValueError if it is malformed."""
        counts = {name: int(data[name]) for name in ("skipped", "streak", "returns", "to")}
        return cls(**counts, known=tuple(int(step) for step in data["known"]))


def _written(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _folder(name: Any) -> str:
    """A name inside a run's folder, and nothing that leads out of it."""
    if not isinstance(name, str) or not name or "/" in name or "\\" in name or name.startswith("."):
        raise ValueError(f"{name!r} is not the name of a checkpoint")
    return name
