"""A Trainer that makes the optimizer of `optimizers`, and may begin a resumed run with a new one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer

from morphing_trainer.checkpoint.trainer_files import (
    OPTIMIZER,
    SCHEDULER,
    check_groups,
    check_moments,
    check_scheduler,
    told,
)
from morphing_trainer.config import MorphingConfig
from morphing_trainer.engine import optimizer_names
from morphing_trainer.errors import CheckpointError, ConfigError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.optimizers import class_and_options, decayed, marked
from morphing_trainer.run.applying import bare_optimizer
from morphing_trainer.run.bundle import Bundle
from morphing_trainer.run.session import Session


class OptimizingTrainer(Trainer):
    """The optimizer half of `MorphingTrainer`."""

    args: MorphingConfig
    model: Any
    optimizer: Any
    lr_scheduler: Any
    session: Session | None = None
    _bundle: Bundle | None = None

    @property
    def bare_model(self) -> PreTrainedModel:
        """The model, without what accelerate and the compiler have wrapped it in."""
        model: PreTrainedModel = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that weight decay acts on: see `optimizers.decayed`.

        In a run that goes on, they are those that it acted on: a mark on a parameter is not saved with a model.
        """
        bare = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        groups = self.session.state.groups if self.session is not None else {}
        if groups:
            chosen = frozenset(name for name, group in groups.items() if group == 0)
        else:
            chosen = decayed(ModelSpec.of(bare), marked(bare))
        own = {id(parameter): name for name, parameter in bare.named_parameters()}
        return [name for name, parameter in model.named_parameters() if own[id(parameter)] in chosen]

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, Any]:
        """As inherited, and the optimizers that go by short names."""
        try:
            return class_and_options(args, model)
        except ImportError as error:
            name = getattr(args.optim, "value", args.optim)
            raise ConfigError(f"optim: {name!r} cannot be used ({error}). Install it, or choose another.") from error

    def _usual_groups(self) -> dict[str, int]:
        """Param group of every parameter, frozen ones too, in an optimizer that Trainer makes."""
        chosen = set(self.get_decay_parameter_names(self.model))
        return {name: 0 if name in chosen else 1 for name, _ in self.model.named_parameters()}

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As inherited, strictly; under `ignore_optimizer` the rates only, and the schedule's position.

        Raises:
            CheckpointError: if the checkpoint's optimizer has other parameters or groups.
        """
        if checkpoint is None:
            return
        assert self._bundle is not None
        names = optimizer_names(self.bare_model, bare_optimizer(self))
        if names != [list(group) for group in self._bundle.optimizer_names]:
            raise CheckpointError(
                f"{checkpoint}: its optimizer has other parameters or param groups than this run's; resume with the "
                "optimizer and grouping that it was saved with."
            )
        folder = Path(checkpoint)
        optimizer = bare_optimizer(self)
        groups = self._bundle.optimizer_groups
        check_groups(folder / OPTIMIZER, groups, optimizer)
        check_scheduler(folder / SCHEDULER, self.lr_scheduler.state_dict())
        if not self.args.ignore_optimizer:
            before = [list(group) for group in optimizer.param_groups]
            with told(folder / OPTIMIZER):
                self._load_states(folder)
            check_moments(folder / OPTIMIZER, optimizer, before)
            return
        for group, saved in zip(self.optimizer.param_groups, groups, strict=True):
            group |= {key: saved[key] for key in ("lr", "initial_lr") if key in saved}
        self.lr_scheduler.load_state_dict(torch.load(folder / "scheduler.pt", weights_only=True))

    def _load_states(self, folder: Path) -> None:
        """Load the state of optimizer and scheduler from a checkpoint."""
        super()._load_optimizer_and_scheduler(str(folder))
