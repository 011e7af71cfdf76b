"""Callbacks that options of a run ask for."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn
from transformers import TrainerCallback

from morphing_trainer.run.gradients import GradientCheck
from morphing_trainer.run.patience import Patience
from morphing_trainer.run.stopping import EarlyStopping

_log = logging.getLogger("morphing_trainer")


def watchers(trainer: Any) -> list[TrainerCallback]:
    """The callbacks for `check_grads` and `early_stopping_patience`.

    Args:
        trainer: a `MorphingTrainer` that is being made.
    """
    args, reports = trainer.args, trainer._reports
    chosen: list[TrainerCallback] = []

    def model() -> nn.Module:
        found: nn.Module = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        return found

    def without(step: int, names: list[str]) -> None:
        reports.event("without_gradient", step, names=names)
        if trainer.is_world_process_zero():
            shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
            _log.warning("step %d: no gradient reaches %s; freeze what is not to be trained", step, shown)

    def stopped(step: int, patience: Patience) -> None:
        reports.event("stopped_early", step, best=patience.best, evaluations=patience.stale)

    if args.check_grads:
        chosen.append(GradientCheck(model, without))
    if args.early_stopping_patience is not None:
        if isinstance(trainer.eval_dataset, dict) and args.metric_for_best_model == "loss":
            args.metric_for_best_model = trainer._morphing.loss_key  # of the first set, as for triggers
        chosen.append(EarlyStopping(lambda: trainer._morphing.session, stopped))
    return chosen
