"""Early stopping: a run ends when evaluations have brought nothing better for a while."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from morphing_trainer.config import MorphingConfig
from morphing_trainer.run.patience import Patience
from morphing_trainer.run.session import Session

_log = logging.getLogger("morphing_trainer")


class EarlyStopping(TrainerCallback):
    """Counts evaluations without improvement, in the run's state, so that a resumed run goes on counting.

    An evaluation that only shows what an operation did does not count. Every new best is saved: it is what is loaded at
    the end.

    Args:
        session: of the run in progress, None between runs.
        stopped: told of the step at which the run is ended, and of the evaluations behind it.
    """

    def __init__(self, session: Callable[[], Session | None], stopped: Callable[[int, Patience], None]) -> None:
        self._session = session
        self._stopped = stopped
        self._starting = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A run that had been stopped does not go on, unless its patience was raised."""
        session, self._starting = self._session(), True
        if session is not None and session.state.patience.stale >= _of(args).early_stopping_patience:
            control.should_training_stop = True

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._starting = False

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        session, key = self._session(), metric_key(args)
        if session is None or not session.listening or metrics is None or key not in metrics:
            return
        if self._starting:
            return  # under `eval_on_start`: a resumed run would count one more
        value, step = session.consensus.loss(metrics[key]), state.global_step
        greater = bool(args.greater_is_better)
        before, threshold = session.state.patience, _of(args).early_stopping_threshold
        session.state.patience = now = before.after(value, step, greater=greater, threshold=threshold)
        if now == before:
            return
        best = state.best_metric
        if math.isfinite(value) and (best is None or (value > best if greater else value < best)):
            control.should_save = True
        if now.stale >= _of(args).early_stopping_patience:
            control.should_training_stop = True
            _log.info("step %d: no better %s in %d evaluations: the run ends", step, key, now.stale)
            self._stopped(step, now)


def metric_key(args: TrainingArguments) -> str:
    """The metric that decides, as evaluations name it."""
    name = str(args.metric_for_best_model)
    return name if name.startswith("eval_") else f"eval_{name}"


def _of(args: TrainingArguments) -> Any:
    assert isinstance(args, MorphingConfig)
    assert args.early_stopping_patience is not None
    return args
