"""The training loop in segments: what the inherited loop asks for, answered from the run's cursor and settings.

`Trainer` fixes model, loader and step counts when an epoch begins. Here an epoch is a row of segments, each run by the
inherited `_run_epoch` with the model, batch size and accumulation of the moment; between them, operations are applied.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import datasets
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers.trainer_utils import has_length

from morphing_trainer.data.cursor import CursorBatchSampler
from morphing_trainer.data.feeding import first_samples, segment_loader
from morphing_trainer.data.loading import QuietLoader
from morphing_trainer.engine import groups_of, states_by_name
from morphing_trainer.errors import DataError
from morphing_trainer.layers.recovering import RecoveringTrainer
from morphing_trainer.run.applying import CurrentModel, bare_optimizer
from morphing_trainer.run.digest import agree
from morphing_trainer.run.learning_rate import STATEFUL, make_scheduler, scale_peaks
from morphing_trainer.run.state import RunState


class SegmentedTrainer(RecoveringTrainer):
    """The loop of `MorphingTrainer`."""

    _scheduler_state: Mapping[str, Any]
    """The learning-rate scheduler that the next one takes up from; empty for a start."""
    _saved_rate: float
    """Peak learning rate under which the checkpoint that is resumed was saved."""

    def _apply_due(self, trial: Any, ignore_keys_for_eval: list[str] | None) -> None:
        """Apply the operation that is due."""
        raise NotImplementedError

    def _enter_stage(self) -> None:
        """Begin the next stage of the plan."""
        raise NotImplementedError

    def _arrived(self, trial: Any) -> None:
        """The run goes on from a checkpoint, all of which is in its place."""
        raise NotImplementedError

    def _end_epoch(self, trial: Any, epoch: int, ignore_keys_for_eval: list[str] | None, start_time: float) -> None:
        """Do what is due at the end of an epoch whose last step was made before."""
        raise NotImplementedError

    def _end_again(self, trial: Any, epoch: int, ignore_keys_for_eval: list[str] | None, start_time: float) -> None:
        """Do what is still to be done of the run's last step, which was made before."""
        raise NotImplementedError

    def _fresh_state(self) -> RunState:
        """The state of a run that begins now."""
        raise NotImplementedError

    # ---- What the inherited loop asks for --------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """The rest of the current epoch, in the order of the run's cursor."""
        return self._segment()[0]

    def _segment(self) -> tuple[QuietLoader, CursorBatchSampler]:
        state = self.session.state if self.session else self._fresh_state()
        cursor, batch = state.cursor, self.course.batch(state.settings)
        dataset, collate = self._samples()
        # Only the first iterator of an epoch may draw random numbers, as plain training does: see `QuietLoader`.
        quiet = cursor.position > 0
        return segment_loader(dataset, collate, cursor, batch, self.args, self.args.device, preserve_rng=quiet)

    def _samples(self) -> tuple[Any, Any]:
        """The training data, and what makes batches of them."""
        dataset, collate = self.train_dataset, self.data_collator
        if isinstance(dataset, datasets.Dataset):
            return self._remove_unused_columns(dataset, description="Training"), collate
        return dataset, self._get_collator_with_removed_columns(collate, description="Training")

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """As inherited, over the first `eval_iters` batches."""
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(chosen, str):
            chosen = self.eval_dataset[chosen]
        if self.args.eval_iters is not None and chosen is not None and has_length(chosen):
            chosen = first_samples(chosen, self.args.eval_iters * self.args.eval_batch_size * self.args.world_size)
        return super().get_eval_dataloader(chosen)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """As inherited; what the next step is computed from is counted on the way."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.session is not None:
            tokens = [batch[self._tokens_key(batch)].numel() for batch in batches]
            self.session.fetched(tokens, getattr(self.train_dataset, "tokens_of", None))
            self.session.meter.step(sum(tokens) if items is None else items)
        return batches, items

    def _tokens_key(self, batch: Mapping[str, Any]) -> str:
        return "input_ids" if "input_ids" in batch else next(iter(batch))

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """As inherited; the loss is summed up for the run's statistics."""
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.session is not None:
            self.session.meter.add(loss)
        return loss

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        assert self.session is not None
        self.session.count_losses()
        super()._save_checkpoint(model, trial)

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple[Any, ...]:
        """Epochs, steps and samples of the run, for a loop whose batches may change size."""
        assert self.session is not None
        state = self.session.state
        per_epoch = self.course.steps_in_epoch(state)
        in_epochs = len(self.course.stages) == 1 and args.max_steps <= 0
        self._shown_epochs = math.ceil(args.num_train_epochs if in_epochs else state.end / per_epoch)
        total_batch = self.get_total_train_batch_size(args)
        samples = state.cursor.length * args.num_train_epochs if in_epochs else state.end * total_batch
        # The last step ends the run. How many epochs that takes is not known before: batches and stages change.
        return sys.maxsize, per_epoch, state.cursor.length, samples, total_batch, len(dataloader), state.end

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: Any,
        trial: Any,
    ) -> tuple[int, int]:
        assert self.session is not None
        super()._init_training_state(
            max_steps, num_update_steps_per_epoch, self._shown_epochs, resume_from_checkpoint, trial
        )
        self.current_flos = 0  # a run that goes back drops steps of this process, and what they cost
        if self.args.reset_history:
            self.state.log_history = []
        self.state.compute_steps(
            self.args, self.session.state.planned
        )  # a checkpoint brings the intervals of the run before
        self._show_settings()
        return self.session.state.rounds, 0

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> Any:
        """The learning-rate schedule under the run's settings, taken up where it stood."""
        if self.session is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            self.lr_scheduler = self._scheduler_at(int(self._scheduler_state.get("last_epoch", 0)), optimizer)
            if self._is_stateful and self._scheduler_state:
                self.lr_scheduler.load_state_dict(dict(self._scheduler_state))
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _scheduler_at(self, position: int, optimizer: Optimizer | None = None) -> LRScheduler:
        assert self.session is not None
        state = self.session.state
        return make_scheduler(self.args, optimizer or self.optimizer, state.settings, state.end, position, state.ramp)

    @property
    def _custom_scheduler(self) -> bool:
        return self.lr_scheduler is not None and not self._created_lr_scheduler

    @property
    def _is_stateful(self) -> bool:
        return getattr(self.args.lr_scheduler_type, "value", self.args.lr_scheduler_type) in STATEFUL

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> tuple[Any, Any]:
        assert self.session is not None
        self._scheduler_state = {}
        super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self.model = self.bare_model  # under FSDP2 the inherited method keeps what the compiler has wrapped
        state = self.session.state
        if not state.groups:
            state.groups = groups_of(self.model, bare_optimizer(self), state.spec, self._usual_groups())
        return CurrentModel(self), train_dataloader

    def prepare_again(self, scheduler_state: Mapping[str, Any]) -> None:
        """Wrap a new model and optimizer with Accelerate, the learning-rate schedule taken up where it stood."""
        self._scheduler_state = scheduler_state
        super()._prepare_for_training(self.state.max_steps, self.callback_handler.train_dataloader, None)
        self.model = self.bare_model

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self.session is None:
            return
        states = states_by_name(self.bare_model, bare_optimizer(self))
        agree(self.session.consensus, (), states, f"the optimizer of {checkpoint}")
        scale_peaks(self.optimizer, self._saved_rate, self.session.state.settings.learning_rate)
        if not self._is_stateful and not self._custom_scheduler:
            self.lr_scheduler = self._scheduler_at(self.lr_scheduler.last_epoch)

    # ---- Segments --------------------------------------------------------------------------------------------------

    def _run_epoch(
        self,
        model: nn.Module,
        epoch: int,
        train_dataloader: Any,
        steps_in_epoch: int,
        num_update_steps_per_epoch: int,
        trial: Any,
        ignore_keys_for_eval: list[str] | None,
        start_time: float,
        resume_from_checkpoint: str | None,
        epochs_trained: int,
        steps_trained_in_current_epoch: int,
    ) -> None:
        """One epoch: the inherited loop, stopped and taken up again wherever an operation is due."""
        assert self.session is not None
        session, state = self.session, self.session.state
        resumed = epoch == epochs_trained and resume_from_checkpoint is not None
        if resumed:
            self._load_rng_state(resume_from_checkpoint)
            self._arrived(trial)
        elif state.step == 0 and not state.executed:
            session.begin()
        if epoch != state.rounds:
            if state.stage_over and state.step < state.end:
                self._enter_stage()
            else:
                state.cursor.next_epoch()
        if state.step >= state.end:
            self.control.should_training_stop = True
            if resumed:
                self._end_again(trial, epoch, ignore_keys_for_eval, start_time)
        if self.control.should_training_stop:
            return
        while True:
            loader, sampler = self._segment()
            session.open_segment(sampler)
            if state.cursor.position == 0 and not len(sampler):
                raise DataError(
                    f"training data: {state.cursor.length} samples make no complete batch of {sampler.batch.size} per "
                    "device; use a smaller one, or leave out dataloader_drop_last."
                )
            if session.epoch_over or state.stage_over:
                self._end_epoch(trial, epoch, ignore_keys_for_eval, start_time)
                return
            if session.due:
                with session.stopwatch.during("morphs"):
                    self._apply_due(trial, ignore_keys_for_eval)
                continue
            self.control.should_epoch_stop = False
            try:
                super()._run_epoch(
                    model=self.model_wrapped,
                    epoch=epoch,
                    train_dataloader=loader,
                    steps_in_epoch=len(sampler),
                    num_update_steps_per_epoch=sampler.layout.steps,
                    trial=trial,
                    ignore_keys_for_eval=ignore_keys_for_eval,
                    start_time=start_time,
                    resume_from_checkpoint=None,
                    epochs_trained=epochs_trained,
                    steps_trained_in_current_epoch=0,
                )
            finally:
                loader.end()  # a loader left in the middle would stay registered with accelerate
            if self._repeats:  # the step ran out of memory and comes again, in smaller batches
                continue
            if self.control.should_training_stop or not session.due or session.epoch_over or state.stage_over:
                return

    def _show_settings(self) -> None:
        """Copy what `TrainerState` shows of the settings, and what its flow goes by."""
        assert self.session is not None
        settings = self.session.state.settings
        self.state.max_steps = self.session.state.end
        self.state.train_batch_size = self._train_batch_size
        if settings.eval_interval is not None:
            self.state.eval_steps = settings.eval_interval
