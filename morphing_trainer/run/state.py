"""Everything a run must remember that `transformers` does not: plain data, saved with every checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from morphing_trainer.data.cursor import Cursor
from morphing_trainer.errors import CheckpointError, MorphError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.run.guard import BadSteps, Guard
from morphing_trainer.run.logged import Logged
from morphing_trainer.run.patience import Patience
from morphing_trainer.run.statistics import Totals
from morphing_trainer.run.timing import Profile, read_profile
from morphing_trainer.schedule import Position, Schedule
from morphing_trainer.settings import Settings
from morphing_trainer.triggers import Clock

SINGLE = "train"
"""The one stage of a run without a plan."""


@dataclass
class RunState:
    """Where a run stands.

    Attributes:
        spec: the model as it is now.
        groups: param group of every parameter, frozen ones included.
        initial, settings: hyper-parameters where the run began, and now.
        began: the model where the run began.
        cursor: which samples have been trained on.
        position: where the run stands in its schedule.
        stages: the stages that have been reached, and the optimizer step at which each began; the last is the current.
        stage_end: optimizer step at which the current stage ends.
        stage_tokens: training tokens seen in the current stage.
        next_stage: number of the stage to go on with, where that is not the one behind the current.
        epochs_before: epochs begun in stages before this one.
        totals: what has been trained on, by stage.
        step: optimizer steps done.
        end: optimizer step at which the run ends.
        planned: where it was to end when it began; intervals that are given as shares are shares of this.
        tokens: training tokens seen, over all processes.
        seconds: time spent training, over all restarts.
        evaluations: (step, raw loss) since the last operation.
        loss, evaluated_at: the last evaluation loss, and the optimizer step that it was measured at.
        epoch_closed: the epoch that the cursor is in has been closed (its end events have fired).
        timing: seconds by part of the work, see `run.timing`.
        analysable: evaluations that the analysis has counted.
        rank_use: share of the rank that adapters use, as last measured since the last operation.
        ramp: the step at which the optimizer began without memory, and the steps in which its rate then rises.
        patience: what early stopping remembers.
        executed: the operations that were applied: `index` in the schedule, optimizer `step`, number of
            the `stage`, and the `entry`; `measured`, if it is an operation that measures. One that was undone by its
            guard is among them, marked `rolled_back`; it had no effect.
        halvings: the steps that ran out of memory, after which batches were half as large: optimizer `step`, and how
            many operations had been `executed` before.
        guard: that of the last operation, while it is not known whether it has worked out.
        bad: steps whose loss or gradient was not finite.
        logged: the sums behind the log lines, as of the last save; None before the first.
    """

    spec: ModelSpec
    groups: dict[str, int]
    initial: Settings
    settings: Settings
    began: ModelSpec
    cursor: Cursor
    position: Position = field(default_factory=Position)
    stages: dict[str, int] = field(default_factory=lambda: {SINGLE: 0})
    stage_end: int = 0
    stage_tokens: int = 0
    next_stage: int | None = None
    epochs_before: int = 0
    totals: dict[str, Totals] = field(default_factory=dict)
    step: int = 0
    end: int = 0
    planned: int = 0
    tokens: int = 0
    seconds: float = 0.0
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    loss: float | None = None
    evaluated_at: int | None = None
    epoch_closed: bool = False
    timing: Profile = field(default_factory=dict)
    analysable: int = 0
    rank_use: float | None = None
    ramp: tuple[int, int] = (0, 0)
    patience: Patience = field(default_factory=Patience)
    executed: list[dict[str, Any]] = field(default_factory=list)
    halvings: list[dict[str, int]] = field(default_factory=list)
    guard: Guard | None = None
    bad: BadSteps = field(default_factory=BadSteps)
    logged: Logged | None = None

    def passed_over(self, schedule: Schedule, guard: Guard) -> None:
        """Pass a guarded operation without effect, in the state from before it; nothing, if that has been noted."""
        if self.position.done != guard.index:
            return
        entry = self.position.upcoming(schedule)
        assert entry is not None
        told = {"index": guard.index, "step": self.step, "stage": self.stage_index, "entry": entry.to_dict()}
        self.executed.append({**told, "rolled_back": True})
        self.position = self.position.applied(schedule, self.step)
        self.evaluations, self.rank_use = [], None

    @property
    def stage_name(self) -> str:
        return next(reversed(self.stages))

    @property
    def stage_index(self) -> int:
        return len(self.stages) - 1

    @property
    def stage_steps(self) -> int:
        """Optimizer steps done in the current stage."""
        return self.step - self.stages[self.stage_name]

    @property
    def stage_over(self) -> bool:
        """Whether the current stage has been trained to its end."""
        return self.step >= self.stage_end

    @property
    def rounds(self) -> int:
        """Epochs begun before the current one, in all stages."""
        return self.epochs_before + self.cursor.epoch

    def clock(self, *, evaluating: bool = False) -> Clock:
        """What triggers see now."""
        return Clock(
            step=self.step,
            epoch=self.cursor.fraction,
            tokens=self.tokens,
            train_seconds=self.seconds,
            waited=self.step - self.position.since,
            evaluations=tuple(self.evaluations),
            evaluating=evaluating,
            rank_use=self.rank_use,
            stages=self.stages,
            end=self.end,
        )

    @property
    def multipliers(self) -> dict[str, float]:
        """The run's hyper-parameters and shape as multipliers of, or divisors from, where it began.

        The rank divisors are those of the hidden size, 0 without adapters.
        """

        def ratio(name: str) -> float:
            start, now = getattr(self.initial, name), getattr(self.settings, name)
            return now / start if start and now is not None else 1.0

        return {
            "lr_multiplier": ratio("learning_rate"),
            "batch_size_multiplier": ratio("batch_size"),
            "grad_accum_multiplier": ratio("grad_accum"),
            "warmup_iters_multiplier": ratio("warmup_steps"),
            "eval_iters_multiplier": ratio("eval_iters"),
            "eval_interval_multiplier": ratio("eval_interval"),
            "lora_alpha_multiplier": self.spec.alpha / self.began.alpha,
            "n_layer_divisor": self.began.layers / self.spec.layers,
            "n_hidden_divisor": self.began.mlp / self.spec.mlp,
            "attn_lora_rank_divisor": self.spec.divisor("attn"),
            "vocab_lora_rank_divisor": self.spec.divisor("wte"),
        }

    def facts(self) -> dict[str, Any]:
        """Shape, size, settings and loss, as a record shows them before and after an operation."""
        return {**self.spec.facts(), **self.settings.to_dict(), "loss": self.loss}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON. Losses that are not finite are written as text, which JSON can hold."""
        return {
            "spec": self.spec.to_dict(),
            "groups": self.groups,
            "initial": self.initial.to_dict(),
            "settings": self.settings.to_dict(),
            "began": self.began.to_dict(),
            "cursor": self.cursor.state(),
            "position": {"done": self.position.done, "since": self.position.since, "pending": self.position.pending},
            "multipliers": self.multipliers,
            "stages": self.stages,
            "stage_end": self.stage_end,
            "stage_tokens": self.stage_tokens,
            "next_stage": self.next_stage,
            "epochs_before": self.epochs_before,
            "totals": {name: totals.to_dict() for name, totals in self.totals.items()},
            "step": self.step,
            "end": self.end,
            "planned": self.planned,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "evaluations": [[step, _written(loss)] for step, loss in self.evaluations],
            "loss": None if self.loss is None else _written(self.loss),
            "evaluated_at": self.evaluated_at,
            "epoch_closed": self.epoch_closed,
            "timing": self.timing,
            "analysable": self.analysable,
            "rank_use": None if self.rank_use is None else _written(self.rank_use),
            "ramp": list(self.ramp),
            "patience": self.patience.to_dict(),
            "executed": self.executed,
            "halvings": self.halvings,
            "guard": None if self.guard is None else self.guard.to_dict(),
            "bad": self.bad.to_dict(),
            "logged": None if self.logged is None else self.logged.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], fresh: Cursor) -> RunState:
        """Rebuild what `to_dict` wrote.

        Args:
            fresh: the start of the current stage's data as it is now.

        Raises:
            CheckpointError: if it is malformed, or the data has another length.
        """
        try:
            return cls(
                spec=ModelSpec.from_dict(data["spec"]),
                groups={str(name): int(group) for name, group in data["groups"].items()},
                initial=Settings(**data["initial"]),
                settings=Settings(**data["settings"]),
                began=ModelSpec.from_dict(data["began"]),
                cursor=Cursor.from_state(data["cursor"], fresh.length, fresh.arrangement),
                position=Position(**data["position"]),
                stages={str(name): int(step) for name, step in data["stages"].items()},
                stage_end=int(data["stage_end"]),
                stage_tokens=int(data["stage_tokens"]),
                next_stage=None if data["next_stage"] is None else int(data["next_stage"]),
                epochs_before=int(data["epochs_before"]),
                totals={str(name): Totals.from_dict(totals) for name, totals in data["totals"].items()},
                step=int(data["step"]),
                end=int(data["end"]),
                planned=int(data["planned"]),
                tokens=int(data["tokens"]),
                seconds=float(data["seconds"]),
                evaluations=[(int(step), float(loss)) for step, loss in data["evaluations"]],
                loss=None if data["loss"] is None else float(data["loss"]),
                evaluated_at=None if data["evaluated_at"] is None else int(data["evaluated_at"]),
                epoch_closed=bool(data["epoch_closed"]),
                timing=read_profile(data["timing"]),
                analysable=int(data["analysable"]),
                rank_use=None if data["rank_use"] is None else float(data["rank_use"]),
                ramp=(int(data["ramp"][0]), int(data["ramp"][1])),
                patience=Patience.from_dict(data["patience"]),
                executed=[
                    {"index": int(e["index"]), "step": int(e["step"]), "stage": int(e["stage"]), "entry": e["entry"]}
                    | ({"measured": _numbers(e["measured"])} if "measured" in e else {})
                    | ({"rolled_back": True} if e.get("rolled_back") else {})
                    for e in data["executed"]
                ],
                halvings=[{"step": int(e["step"]), "executed": int(e["executed"])} for e in data["halvings"]],
                guard=None if data.get("guard") is None else Guard.from_dict(data["guard"]),
                bad=BadSteps.from_dict(data["bad"]) if "bad" in data else BadSteps(),
                logged=None if data.get("logged") is None else Logged.from_dict(data["logged"]),
            )
        except MorphError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"checkpoint: its state is not one that this library wrote ({error!r})") from error


def _numbers(measured: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): value if isinstance(value, int) else float(value) for name, value in measured.items()}


def _written(loss: float) -> float | str:
    return loss if math.isfinite(loss) else str(loss)
