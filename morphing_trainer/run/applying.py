"""Applying one operation to a live Trainer: all of it, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer

from morphing_trainer.config import MorphingConfig
from morphing_trainer.engine import grow, install_states, rebuild_optimizer, states_by_name
from morphing_trainer.lineage import Census
from morphing_trainer.operations import ArchitectureOperation, Morph
from morphing_trainer.planning import operation_rng
from morphing_trainer.run.state import RunState
from morphing_trainer.settings import Settings

MUTABLE = ("per_device_train_batch_size", "gradient_accumulation_steps", "step_samples", "eval_iters")
"""Training arguments that `enforce` changes."""


class CurrentModel:
    """Stands for the model of the moment in places that would hold on to the first one."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer.model_wrapped, name)


def bare_optimizer(trainer: Any) -> Optimizer:
    """The torch optimizer inside accelerate's wrapper."""
    optimizer = trainer.optimizer
    bare: Optimizer = getattr(optimizer, "optimizer", optimizer)
    return bare


def enforce(settings: Settings, args: MorphingConfig) -> None:
    """Put the settings that the loop reads from its arguments into force."""
    args.per_device_train_batch_size = settings.batch_size
    args.gradient_accumulation_steps = settings.grad_accum
    args.step_samples = settings.step_samples
    args.eval_iters = settings.eval_iters


@contextmanager
def restored_on_failure(trainer: Any) -> Iterator[None]:
    """Leave model, optimizer and scheduler as they were if the block raises. Global random state stays in any case."""
    names = ("model", "model_wrapped", "optimizer", "lr_scheduler", "_created_lr_scheduler")
    before = {name: getattr(trainer, name) for name in names}
    prepared = ("_models", "_optimizers", "_schedulers", "_dataloaders")
    lists = {name: getattr(trainer.accelerator, name) for name in prepared}
    handler = {name: getattr(trainer.callback_handler, name) for name in ("model", "optimizer", "lr_scheduler")}
    device = trainer.args.device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    except BaseException:
        for owner, values in ((trainer, before), (trainer.accelerator, lists), (trainer.callback_handler, handler)):
            for name, value in values.items():
                setattr(owner, name, value)
        raise


def transplant(trainer: Any, state: RunState, operation: ArchitectureOperation, index: int) -> tuple[Morph, Census]:
    """Put the grown model and its optimizer in the place of the old ones, prepared with Accelerator.

    Raises:
        OperationError: if the operation does not fit; anything that raises leaves the trainer as it was.
    """
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    optimizer = bare_optimizer(trainer)
    schedule_state = trainer.lr_scheduler.state_dict()
    with restored_on_failure(trainer):
        grown, failure = None, None
        try:
            grown = grow(
                operation,
                state.spec,
                model,
                states_by_name(model, optimizer),
                state.groups,
                operation_rng(trainer.args.seed, index),
            )
        except Exception as error:  # of any kind: the other ranks must not wait for this one in vain
            failure = error
        trainer.session.consensus.settle(failure)
        assert grown is not None
        # Accelerate keeps what it has prepared; the old model must not stay alive, nor be taken for the new one.
        trainer.accelerator.free_memory()
        if trainer.args.torch_compile:
            torch._dynamo.reset()
        trainer.model = trainer.model_wrapped = grown.model
        trainer.optimizer = rebuild_optimizer(optimizer, grown.model, grown.groups)
        trainer.lr_scheduler = None
        trainer.prepare_again(schedule_state)
        install_states(grown.model, bare_optimizer(trainer), grown.states)
    state.spec, state.groups = grown.morph.spec, grown.groups
    return grown.morph, grown.census
