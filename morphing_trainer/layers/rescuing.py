"""A Trainer that goes back to its own checkpoints: of operations that have not worked out, and of bad steps.

What leads there is raised as a `GoingBack` out of the inherited loop, on all ranks at the same place.
`MorphingTrainer.train` then goes round again, with that checkpoint, by the way that a resume takes. Right at its
beginning the checkpoint is saved once more, with the note of what must not come again: from there on a run that is
killed knows it too. One that is killed before comes to the same point again, and goes back again.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from morphing_trainer.checkpoint import verify
from morphing_trainer.checkpoint.store import checkpoints, drop_later, prune
from morphing_trainer.errors import CheckpointError, NotFiniteError
from morphing_trainer.layers.finite import FiniteTrainer
from morphing_trainer.run.back import GoingBack, Return
from morphing_trainer.run.bundle import REQUIRED, Bundle
from morphing_trainer.run.finite import GRADIENT, what
from morphing_trainer.run.guard import Guard
from morphing_trainer.run.state import RunState

_log = logging.getLogger("morphing_trainer")


class RescuingTrainer(FiniteTrainer):
    """Going back to a checkpoint of the run that is going on, and what `on_nan` does."""

    _own: list[Path]
    """The checkpoint that this run began from, and those that it has saved since."""
    _saved_key: tuple[Any, ...] | None = None
    """Where the run stood when it was saved last."""
    _returning: Return | None = None
    """The run goes back, and has not arrived."""

    def _undo(self, guard: Guard, loss: float | None, reason: str = "") -> NoReturn:
        """An operation has not worked out."""
        raise NotImplementedError

    def _begin_rescue(self, bundle: Bundle | None, target: Return | None) -> None:
        """A run begins, is resumed, or goes back."""
        self._own = [] if bundle is None else [bundle.path]
        self._returning, self._leaves_out = target, False
        assert self.session is not None
        here = bundle is not None and bundle.path.resolve() == self._folder(self.session.state.step).resolve()
        self._saved_key = self._key if here and target is None else None

    def _folder(self, step: int) -> Path:
        return self.run_folder / f"checkpoint-{step}"

    @property
    def _key(self) -> tuple[Any, ...]:
        assert self.session is not None
        state = self.session.state
        return state.step, state.position, state.stage_index, state.cursor.epoch

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        assert self.session is not None
        if self.session.saves:
            self._own = [*self._own[-20:], self._folder(self.session.state.step)]
            self._saved_key = self._key

    def _save_now(self, trial: Any) -> None:
        """Save between two steps, and wait until it is there."""
        assert self.session is not None
        self._save_checkpoint(self.model_wrapped, trial)
        if self.session.writing:
            self.finish_write()
        elif self.session.saves:
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _drop_later(self, whole: Path, step: int) -> None:
        """Delete the run's checkpoints of steps behind `step`, if the one at `whole` is whole."""
        failure = None
        if self.is_world_process_zero():
            try:
                verify(whole, REQUIRED)
                drop_later(self._folder(step))
            except CheckpointError as error:
                failure = error
        assert self.session is not None
        self.session.consensus.settle(failure)

    def _arrived(self, trial: Any) -> None:
        """The run has gone back, and is about to go on: from here on its checkpoint knows why."""
        target, self._returning = self._returning, None
        if target is None:
            self._tidy()
            return
        self._save_now(trial)
        assert self.session is not None
        if target.drops:
            step = self.session.state.step
            self._drop_later(self._folder(step), step)

    def _tidy(self) -> None:
        """A run goes on from a checkpoint: delete what was to go when that was saved, if the run was killed before.

        Of later steps than its own nothing is deleted, nor do they count: they are damaged, or were left behind on
        purpose.
        """
        if self.args.save_total_limit is None or not self.args.should_save:
            return
        here, best = self._folder(self.state.global_step), self.state.best_model_checkpoint
        found = checkpoints(self.run_folder)
        if here in found:
            kept = [here, *([Path(best)] if best else []), *self.protected()]
            prune(self.run_folder, found.index(here) + self.args.save_total_limit, kept)

    # ---- Bad steps -------------------------------------------------------------------------------------------------

    def _not_finite(self, step: int, code: int) -> None:
        """A step's loss or gradient is not finite, and its update has been made.

        Raises:
            GoingBack, GuardError, NotFiniteError: one of them.
        """
        assert self.session is not None
        state = self.session.state
        where = self._ranks_of(code)
        told = f"step {step}: the {what(code)} is NaN or infinite{where}"
        if state.guard is not None:
            self._undo(state.guard, None, f"the {what(code)} of step {step} is NaN or infinite")
        if self.args.on_nan == "rollback":
            self._return(step, code, told)
        self._end_bad(told)

    def _check_streak(self) -> None:
        """Too many updates in a row have been left out."""
        assert self.session is not None
        state = self.session.state
        # After a return the bad step is left out, which is what was wanted: it is one too many only beyond the limit.
        if state.bad.streak < self.args.nan_limit + (self.args.on_nan == "rollback"):
            return
        told = f"the loss or gradient has been NaN or infinite in {state.bad.streak} steps in a row"
        if state.guard is not None:
            self._undo(state.guard, None, f"{told} (nan_limit)")
        self._end_bad(f"step {state.step}: {told} (nan_limit)")

    def _ranks_of(self, code: int) -> str:
        """Which ranks, if not all."""
        assert self.session is not None
        world, mine = self.args.world_size, code % GRADIENT + code // GRADIENT
        if world == 1 or mine >= world:
            return ""
        return f" on {mine} of {world} ranks"

    def _return(self, bad: int, code: int, told: str) -> None:
        """Go back to the last good checkpoint, unless that has been tried too often or there is none."""
        assert self.session is not None
        self.finish_write()
        live = self.session.state.bad
        folder = self._last_good()
        if folder is None:
            return
        step = int(folder.name.removeprefix("checkpoint-"))
        known = live.going_back(bad, step)
        if known.returns > self.args.nan_limit:
            self._end_bad(f"{told}, and the run has gone back to step {step} {live.returns} times (nan_limit)")
        if self.is_world_process_zero():
            _log.warning("%s. The run goes back to step %d and leaves out its update.", told, step)

        def mark(state: RunState) -> None:
            state.bad = replace(state.bad, known=known.known, returns=known.returns, to=known.to)

        raise GoingBack(Return(folder, "returned", mark, {"bad": bad, "what": what(code), "times": known.returns}))

    def _last_good(self) -> Path | None:
        """The newest of this run's own checkpoints that is whole."""
        assert self.session is not None
        found = ""
        if self.is_world_process_zero():
            for folder in reversed(self._own):
                try:
                    verify(folder, REQUIRED)
                    found = str(folder)
                    break
                except CheckpointError:
                    continue
        found = self.session.consensus.shared(found)
        return Path(found) if found else None

    def _end_bad(self, told: str) -> NoReturn:
        """End the run.

        Raises:
            NotFiniteError: in any case.
        """
        assert self.session is not None
        self.finish_write()
        folder = self._last_good()
        advice = "Nothing has been saved before; start again"
        if folder is not None:
            advice = f"{folder.name} is the last good checkpoint; go on from it by --resume_from_checkpoint {folder}"
        others = " or ".join(f"on_nan: {way}" for way in ("rollback", "skip") if way != self.args.on_nan)
        error = NotFiniteError(
            f"{told}, so the run ends, and this step is not saved. {advice}, with a lower learning_rate or a "
            f"max_grad_norm, or with {others}."
        )
        self.session.consensus.all_know(error)
        raise error
