"""Everything a run must remember that `transformers` does not: plain data, saved with every checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from morphing_trainer.data.cursor import Cursor
from morphing_trainer.errors import CheckpointError, MorphError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.schedule import Position
from morphing_trainer.settings import Settings
from morphing_trainer.triggers import Clock


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
        step: optimizer steps done.
        end: optimizer step at which the run ends.
        tokens: training tokens seen, over all processes.
        seconds: time spent training, over all restarts.
        evaluations: (step, raw loss) since the last operation.
        loss, evaluated_at: the last evaluation loss, and the optimizer step that it was measured at.
        epoch_closed: the epoch that the cursor is in has been closed (its end events have fired).
        executed: the operations that were applied: `index` in the schedule, optimizer `step`, and the `entry`.
    """

    spec: ModelSpec
    groups: dict[str, int]
    initial: Settings
    settings: Settings
    began: ModelSpec
    cursor: Cursor
    position: Position = field(default_factory=Position)
    step: int = 0
    end: int = 0
    tokens: int = 0
    seconds: float = 0.0
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    loss: float | None = None
    evaluated_at: int | None = None
    epoch_closed: bool = False
    executed: list[dict[str, Any]] = field(default_factory=list)

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
            "step": self.step,
            "end": self.end,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "evaluations": [[step, _written(loss)] for step, loss in self.evaluations],
            "loss": None if self.loss is None else _written(self.loss),
            "evaluated_at": self.evaluated_at,
            "epoch_closed": self.epoch_closed,
            "executed": self.executed,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], samples: int) -> RunState:
        """Rebuild what `to_dict` wrote, for a training set of `samples` samples.

        Raises:
            CheckpointError: if it is malformed, or the training set has another length.
        """
        try:
            return cls(
                spec=ModelSpec.from_dict(data["spec"]),
                groups={str(name): int(group) for name, group in data["groups"].items()},
                initial=Settings(**data["initial"]),
                settings=Settings(**data["settings"]),
                began=ModelSpec.from_dict(data["began"]),
                cursor=Cursor.from_state(data["cursor"], samples),
                position=Position(**data["position"]),
                step=int(data["step"]),
                end=int(data["end"]),
                tokens=int(data["tokens"]),
                seconds=float(data["seconds"]),
                evaluations=[(int(step), float(loss)) for step, loss in data["evaluations"]],
                loss=None if data["loss"] is None else float(data["loss"]),
                evaluated_at=None if data["evaluated_at"] is None else int(data["evaluated_at"]),
                epoch_closed=bool(data["epoch_closed"]),
                executed=[
                    {"index": int(e["index"]), "step": int(e["step"]), "entry": e["entry"]} for e in data["executed"]
                ],
            )
        except MorphError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(f"checkpoint: its state is not one that this library wrote ({error!r})") from error


def _written(loss: float) -> float | str:
    return loss if math.isfinite(loss) else str(loss)
