"""Going back to an earlier checkpoint of the run that is going on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from morphing_trainer.run.state import RunState


@dataclass(frozen=True)
class Return:
    """Where a run goes back to, and why.

    Attributes:
        folder: the checkpoint.
        event: what the journal calls it.
        facts: what the journal says of it.
        mark: notes in the checkpoint's state what must not come again.
        drops: whether checkpoints of later steps go: nothing leads to them any more.
    """

    folder: Path
    event: str
    mark: Callable[[RunState], None]
    facts: Mapping[str, Any] = field(default_factory=dict)
    drops: bool = False


class GoingBack(Exception):
    """Raised out of the training loop, on all ranks; `MorphingTrainer.train` goes on from the checkpoint."""

    def __init__(self, target: Return) -> None:
        super().__init__(f"going back to {target.folder}")
        self.target = target
