"""A Trainer that can say all that it is at the end of a step."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from transformers import TrainerState
from transformers.trainer_callback import ExportableState

from morphing_trainer.callback import SegmentHandler
from morphing_trainer.engine import dressed, optimizer_names
from morphing_trainer.layers.publishing import PublishingTrainer
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.lora import without_adapters
from morphing_trainer.run.applying import bare_optimizer
from morphing_trainer.run.bundle import bundle_files
from morphing_trainer.run.course import Course
from morphing_trainer.run.folder import JOURNAL
from morphing_trainer.run.references import References
from morphing_trainer.run.snapshot import Copier, Snapshot
from morphing_trainer.schedule import Schedule
from morphing_trainer.sharding.tensors import local_part


class SnapshotTrainer(PublishingTrainer):
    """What of `MorphingTrainer` a checkpoint holds."""

    # Trainer's own annotations allow None and other classes, which a morphing run never has.
    callback_handler: SegmentHandler
    schedule: Schedule
    course: Course
    """The stages of the run."""
    _arguments: dict[str, Any]
    """The arguments as they were given: operations change them while the run goes on."""
    _references: References | None = None
    """What the analysis remembers, on the main process of a run that analyses."""

    def _snapshot(self, state: TrainerState, optimizer: Mapping[str, Any] | None, *, copied: bool) -> Snapshot | None:
        """This step, on the rank that writes; the others may be needed to put the model together.

        Args:
            state: what `Trainer` knows of the run.
            optimizer: what `optimizer.pt` is to hold of a sharded one.
            copied: the tensors are to be the snapshot's own.
        """
        assert self.session is not None
        model = self.whole_model()
        if model is None or not self.args.should_save:
            return None
        spec, copier = ModelSpec.of(model), Copier()
        weights = dict(model.named_parameters())
        plain, own = without_adapters(model, merge=not spec.sites), weights if spec.sites else {}
        matrices: Mapping[str, Tensor] = {name: own[name] for name in own if spec.adapter_at(name)}
        whole = not self.args.save_only_model
        if whole and optimizer is None:
            optimizer = bare_optimizer(self).state_dict()
        if copied:
            live = {_memory(weight) for weight in self.bare_model.parameters()}
            held = {
                name: weight.detach() if weight.is_cpu and _memory(weight) not in live else copier.tensor(weight)
                for name, weight in plain.named_parameters()
            }
            plain = dressed(ModelSpec.of(plain), held, like=plain)
            plain.generation_config = copy.deepcopy(plain.generation_config)
            matrices = copier.tree(matrices)
            optimizer = copier.tree(optimizer)
        scaler = getattr(self.accelerator, "scaler", None)
        return Snapshot(
            model=plain,
            spec=spec,
            adapters=matrices,
            optimizer=optimizer,
            scheduler=copier.tree(self.lr_scheduler.state_dict()) if whole else None,
            scaler=copier.tree(scaler.state_dict()) if whole and scaler is not None else None,
            random=(),
            trainer=state,
            arguments=copy.copy(self.args),
            tokenizer=self.processing_class or getattr(self.data_collator, "tokenizer", None),
            texts=bundle_files(
                self.session.state,
                arguments=self._arguments,
                schedule=self.schedule.to_list(),
                stages=[stage.facts() for stage in self.course.stages],
                optimizer_names=optimizer_names(self.bare_model, bare_optimizer(self)),
                journal=self.run_folder / JOURNAL,
            ),
            references=self._references,
            arrived=copier.recorded(),
        )

    def _copied_bytes(self) -> int:
        """Host memory that a copy of this step takes on this rank."""
        weights: list[Tensor] = list(self.model.parameters()) if self.args.should_save else []
        state: list[Tensor] = []
        if not self.args.save_only_model and (self.args.should_save or self.is_sharded):
            state = [local_part(each) for each in _tensors(bare_optimizer(self).state)]
        return sum(each.numel() * each.element_size() for each in (*weights, *state))

    def _state_now(self) -> TrainerState:
        """A copy of what `Trainer` knows of the run, with what its callbacks and its control want to have kept.

        Lines of the history are not changed once they are logged, so they are shared with it.
        """
        for each in (*self.callback_handler.callbacks, self.control):
            if isinstance(each, ExportableState):
                kept: Any = self.state.stateful_callbacks
                name, now = each.__class__.__name__, each.state()
                kept[name] = [*kept[name], now] if isinstance(kept[name], list) else now
        state = copy.copy(self.state)
        state.log_history = list(state.log_history)
        state.stateful_callbacks = copy.deepcopy(state.stateful_callbacks)
        return state


def _memory(tensor: Tensor) -> int:
    """Address of the memory that a tensor, or this process's part of it, lies in."""
    return local_part(tensor).untyped_storage().data_ptr()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
