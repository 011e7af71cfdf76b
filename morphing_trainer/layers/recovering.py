"""A Trainer that repeats a step that ran out of memory in smaller batches, and can try out how large they may be."""

from __future__ import annotations

import copy
import logging
import os
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import nn

from morphing_trainer.errors import OutOfMemoryError
from morphing_trainer.layers.pressure import PressedTrainer
from morphing_trainer.memory.failures import brief, is_out_of_memory
from morphing_trainer.memory.peak import state_bytes_ahead
from morphing_trainer.memory.rng import RandomState
from morphing_trainer.memory.splitting import halved
from morphing_trainer.memory.trial import StepProbe, longest_samples
from morphing_trainer.run.applying import bare_optimizer
from morphing_trainer.run.consensus import Consensus, RankError
from morphing_trainer.run.statistics import LossMeter
from morphing_trainer.settings import Settings
from morphing_trainer.sharding.leaving import leave_groups

_log = logging.getLogger("morphing_trainer")


class StepRanOut(Exception):
    """Forward or backward ran out of memory. Raised when the error itself, which holds the step's tensors, is gone."""


@dataclass(frozen=True)
class StepStart:
    """What forward and backward change, as it was when an optimizer step began, before its data were fetched."""

    random: RandomState
    loss: torch.Tensor
    meter: LossMeter
    flos: Any
    tokens_seen: Any


class RecoveringTrainer(PressedTrainer):
    """What `MorphingTrainer` does when memory runs out."""

    _consensus: Consensus
    """Of the run, before its session is open."""
    _start: StepStart | None = None
    _repeats = False
    """The last step ran out of memory, nothing of it is left, and it is to be made again."""

    def _adopt(self, new: Settings) -> None:
        """Put other settings into force."""
        raise NotImplementedError

    def _samples(self) -> tuple[Any, Any]:
        """The training data, and what makes batches of them."""
        raise NotImplementedError

    def _watch_memory(self) -> None:
        super()._watch_memory()
        self._start, self._repeats = None, False

    # ---- Out of memory ---------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """As inherited; takes note of where the step begins."""
        if self.session is not None and self.args.world_size == 1:
            # Before the data are fetched: the first iterator of an epoch draws a random number, and will do so again.
            self._start = StepStart(
                RandomState.now(self.args.device),
                self._tr_loss.clone(),
                copy.copy(self.session.meter),
                self.current_flos,
                self.state.num_input_tokens_seen,
            )
        self._doing = "data"
        found: tuple[list[Any], Any] = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._doing = "step"
        return found

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """As inherited; an error for want of memory becomes a `StepRanOut`."""
        try:
            loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
            return loss
        except (RuntimeError, MemoryError) as error:
            if self.session is None or not is_out_of_memory(error):
                raise
            reason = brief(error)
        raise StepRanOut(reason)

    def _run_epoch(self, *args: Any, **options: Any) -> None:
        """As inherited, but a step that runs out of memory leaves no trace, and `_repeats` says that it comes again."""
        self._repeats, reason, outside = False, "", False
        try:
            super()._run_epoch(*args, **options)
        except StepRanOut as error:
            reason = str(error)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RankError) or not is_out_of_memory(error):
                raise
            reason, outside = brief(error), True
        # Out here the error is gone, and the tensors that its traceback held.
        if reason:
            options.clear()
        if outside:
            self._end_outside(reason)
        if reason:
            self._recover(reason)

    def _recover(self, reason: str) -> None:
        """Go back to the beginning of the step and halve the batch.

        Raises:
            OutOfMemoryError: if a batch of 1 is still too large, or there are several processes.
        """
        assert self.session is not None
        state, before = self.session.state, self.session.state.settings
        if self.args.world_size > 1:
            measured = "" if self.is_fsdp_enabled else ", or let adjust_batch_size measure what fits"
            raise OutOfMemoryError(
                f"out of memory in step {state.step + 1} with {before.batch_size} samples per device ({reason}). A "
                "step of several processes cannot be repeated, as they meet in it: resume from the last checkpoint "
                f"with a smaller per_device_train_batch_size ({max(1, before.batch_size // 2)}) and more "
                f"gradient_accumulation_steps{measured}."
            )
        self._go_back()
        if before.batch_size == 1:
            self._end(reason)
        new = halved(before)
        self._adopt(new)
        state.halvings.append({"step": state.step, "executed": len(state.executed)})
        self._reports.event("out_of_memory", state.step, reason=reason, before=_batch(before), after=_batch(new))
        _log.warning(
            "step %d: out of memory (%s). Repeated with %d samples per device (before: %d), accumulation %d (%d); the "
            "run goes on so.",
            state.step + 1,
            reason,
            new.batch_size,
            before.batch_size,
            new.grad_accum,
            before.grad_accum,
        )
        self._repeats = True

    def _let_go(self) -> None:
        """Drop what holds a process group. The run cannot go on after it."""
        leave_groups(self.model)
        self.model_wrapped = self.model
        self.accelerator.free_memory()
        self._consensus.close()

    def _go_back(self) -> None:
        """Undo what forward and backward of the running step have done."""
        assert self._start is not None
        assert self.session is not None
        self.model.zero_grad()
        self._tr_loss.copy_(self._start.loss)
        self.session.meter = self._start.meter
        self.current_flos = self._start.flos
        self.state.num_input_tokens_seen = self._start.tokens_seen
        clear_device_cache(garbage_collection=True)
        self._forget_peak()
        self._start.random.restore(self.args.device)  # last: what is collected may have drawn

    def _end(self, reason: str) -> None:
        """One sample does not fit: save the state before the step, if it can be.

        Raises:
            OutOfMemoryError: in any case.
        """
        assert self.session is not None
        step, why = self.session.state.step, f"out of memory in step {self.session.state.step + 1}"
        try:
            saved = self._save_emergency(self.model, None, why) if step else "nothing had been trained yet"
        except (RuntimeError, MemoryError) as error:
            saved = f"there was not enough memory to save, either ({brief(error)})"
        raise OutOfMemoryError(
            f"{why} even with one sample per device ({reason}): use activation_checkpointing, shorter samples "
            f"(block_size) or a smaller model. {saved[0].upper()}{saved[1:]}."
        )

    def _end_outside(self, reason: str) -> None:
        """Memory ran out where nothing can be repeated.

        Raises:
            OutOfMemoryError: in any case.
        """
        assert self.session is not None
        step = self.session.state.step
        what = {
            "data": f"out of memory while the data of step {step + 1} were fetched ({reason}): use fewer "
            "dataloader_num_workers, or a smaller batch",
            "step": f"out of memory in the optimizer's step {step + 1} ({reason}). Some weights may have been updated "
            "and others not, so nothing is saved: use an optimizer that remembers less, such as sgd, or a smaller "
            "model",
            "evaluation": f"out of memory after step {step}, in an evaluation or in saving ({reason}): lower "
            "per_device_eval_batch_size, or set eval_accumulation_steps",
        }[self._doing]
        raise OutOfMemoryError(f"{what}. Resume from the last checkpoint by --resume_from_checkpoint true.")

    # ---- Trial steps -----------------------------------------------------------------------------------------------

    def _probe(self) -> StepProbe:
        """Tries batches of any size out on the model as it is."""
        assert self.session is not None
        dataset, collate = self._samples()
        self.current_gradient_accumulation_steps = 1  # read where the number of tokens is not given; set at every step
        return StepProbe(
            self.bare_model,
            super().training_step,
            samples=self.course.fewest_samples(self.session.state.stage_index) // self.args.world_size,
            longest=longest_samples(dataset),
            collate=collate,
            device=self.args.device,
            consensus=self.session.consensus,
            processes=int(os.environ.get("LOCAL_WORLD_SIZE", self.args.world_size)),  # as launchers set it
            ahead=state_bytes_ahead(bare_optimizer(self)),
        )


def _batch(settings: Settings) -> dict[str, int | None]:
    return {name: getattr(settings, name) for name in ("batch_size", "grad_accum", "step_samples")}
