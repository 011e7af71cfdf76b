"""A Trainer that tells where its time goes, what its log lines belong to, and what its weights look like inside."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from morphing_trainer.callback import MorphCallback
from morphing_trainer.layers.evaluating import EvaluatingTrainer
from morphing_trainer.lineage import Lineage
from morphing_trainer.run import analysis
from morphing_trainer.run.bundle import Bundle
from morphing_trainer.run.recorder import Recorder
from morphing_trainer.run.references import References
from morphing_trainer.run.reports import RunReports
from morphing_trainer.run.setup import setup
from morphing_trainer.run.timing import StepTimer, Stopwatch

_log = logging.getLogger("morphing_trainer")


class ObservingTrainer(EvaluatingTrainer):
    """The timers, log lines and analysis of `MorphingTrainer`. Nothing here changes what is trained."""

    _reports: RunReports
    _given: dict[str, Any]
    _counted: tuple[weakref.ref[Any], int] | None = None
    """A model, and the number of its parameters that are not embeddings."""

    described: Mapping[str, Any] = MappingProxyType({})
    """Arguments beside those of the training that a report shows: dataclasses by the name of their group."""

    def _observe(self, morphing: MorphCallback) -> None:
        """Install the callbacks: the timer ahead of all others, the recorder behind, when all is known."""
        morphing.analyse = self._analyse
        callbacks = self.callback_handler.callbacks
        callbacks.insert(0, StepTimer(lambda: self._stopwatch if self.session else None))
        callbacks.append(Recorder(self.run_folder, lambda: self.session, self._begun, self._flos, self._setup))

    def _setup(self) -> dict[str, Any]:
        """What the run was told; of arguments that operations change, as they were given."""
        groups = {**self.described, "training": (self.args, self._given)}
        return setup(groups, self.args.device, self.args.world_size)

    def _begun(self) -> None:
        """Every callback knows that training begins: a series of the model's size needs its first point."""
        assert self.session is not None
        if len(self.schedule) and self.session.state.step == 0 and not self.session.state.executed:
            self._log_size()

    @property
    def _stopwatch(self) -> Stopwatch:
        return self.session.stopwatch if self.session else Stopwatch()

    # ---- Time ------------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """As inherited, timed."""
        with self._stopwatch.during("data"):
            return super().get_batch_samples(epoch_iterator, num_batches, device)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As inherited, timed."""
        with self._stopwatch.during("evaluation"):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self._stopwatch.during("saving"):
            if self.session is not None:
                self.session.state.timing = self._stopwatch.profile()
            super()._save_checkpoint(model, trial)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As inherited: 6 times the tokens times the parameters that are not embeddings.

        These are counted once for each model: at every step, that takes as long as all that this library does there.
        """
        name = getattr(self.model, "main_input_name", "input_ids")
        if name not in inputs or not hasattr(self.model, "num_parameters"):
            return 0
        if self._counted is None or self._counted[0]() is not self.model:
            self._counted = weakref.ref(self.model), self.model.num_parameters(exclude_embeddings=True)
        return int(6 * inputs[name].numel() * self._counted[1])

    # ---- Log lines -------------------------------------------------------------------------------------------------

    def _flos(self) -> float:
        """Floating-point operations until now, of all processes; they are taken to have computed as much as this one
        since the last log."""
        return float(self.state.total_flos + self.current_flos * self.args.world_size)

    def _log_size(self, operation: str | None = None) -> None:
        """A marker for whoever reports: the model's size and the number of operations done, and the last one's name."""
        assert self.session is not None
        state = self.session.state
        done = state.executed[-1]["index"] + 1 if state.executed else 0
        facts = {"operations": done, **state.spec.facts()}
        line: dict[str, Any] = {f"morph/{name}": float(value) for name, value in facts.items()}
        if operation is not None:
            line["morph/operation"] = operation
        self.log(line)

    # ---- Analysis --------------------------------------------------------------------------------------------------

    def _watched(self) -> dict[str, torch.Tensor]:
        """The weights that are analysed, on the main process; all have to ask."""
        assert self.session is not None
        weights = self.whole_weights()
        if not self.is_world_process_zero():
            return {}
        return {name: weights[name] for name in analysis.watched(self.session.state.spec)}

    def _begin_analysis(self, bundle: Bundle | None) -> None:
        """Take note of the weights as the run begins, or take up what its checkpoint knows of them."""
        self._references = None
        if self.args.analysis_evals is None:
            return
        assert self.session is not None
        watched = self._watched()
        if not self.is_world_process_zero():
            return
        if bundle is None:
            self._references = References.of(watched)
            return
        self._references = References.load(bundle.path, analysis.watched(self.session.state.spec))
        if self._references is None:
            _log.warning(
                "analysis: the checkpoint was saved without it, so the drift since the start of the run is not known; "
                "the drift since the last operation is told from the next one on."
            )
            self._references = References()

    def _operated(self, lineage: Lineage | None) -> None:
        """An operation has been applied: drift counts from here, too."""
        if self.args.analysis_evals is None:
            return
        watched = self._watched()
        if self._references is not None:
            self._references = self._references.after(lineage, watched)

    def _analyse(self, step: int) -> float | None:
        """At every `analysis_evals`-th evaluation: measure, log and note; the share of their rank that adapters use."""
        if self.args.analysis_evals is None:
            return None
        assert self.session is not None
        state = self.session.state
        state.analysable += 1
        if state.analysable % self.args.analysis_evals:
            return None
        use, found, failure = None, {}, None
        weights = self.whole_weights()
        try:
            if self._references is not None:
                found = analysis.measure(state.spec, weights, self._references.start, self._references.since)
                use = analysis.rank_use(found)
                self._reports.event("analysis", step, rank_use=use, weights=analysis.compact(found))
        except Exception as error:  # of any kind: the other ranks must not wait for this one in vain
            failure = error
        self.session.consensus.settle(failure)
        use = self.session.consensus.loss(math.nan if use is None else use)  # rank 0's bits on every rank
        if found:
            self.log(analysis.summary(found))
        return use if state.spec.sites else None
