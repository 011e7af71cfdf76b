"""An operation that fails has never been: what it has changed of a run is put back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from morphing_trainer.memory.rng import RandomState
from morphing_trainer.run.applying import MUTABLE, bare_optimizer, restored_on_failure

_SHOWN = ("max_steps", "eval_steps", "train_batch_size")
"""What `TrainerState` shows of settings."""


@contextmanager
def undone_on_failure(trainer: Any) -> Iterator[None]:
    """Leave the run as it was if the block raises: model, optimizer, settings, counts, schedules and random numbers."""
    state = trainer.session.state
    device, random = trainer.args.device, RandomState.now(trainer.args.device)
    kept: list[tuple[Any, dict[str, Any]]] = [
        (state, {field.name: _copied(getattr(state, field.name)) for field in fields(state)}),
        (trainer.args, {name: getattr(trainer.args, name) for name in MUTABLE}),
        (trainer.state, {name: getattr(trainer.state, name) for name in _SHOWN}),
        (trainer.control, dict(vars(trainer.control))),
        (trainer, {"_train_batch_size": trainer._train_batch_size}),
    ]
    groups = bare_optimizer(trainer).param_groups
    options = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    scheduler = trainer.lr_scheduler.state_dict()
    try:
        with restored_on_failure(trainer, forking=False):
            yield
    except BaseException:
        for owner, values in kept:
            for name, value in values.items():
                setattr(owner, name, value)
        for group, before in zip(groups, options, strict=True):
            group.update(before)
        trainer.lr_scheduler.load_state_dict(scheduler)
        random.restore(device)
        raise


def _copied(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, list | dict) else value
