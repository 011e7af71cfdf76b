"""A Trainer whose evaluations average over tokens, say how well tokens and words are predicted, and show an example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput

from morphing_trainer.config import MorphingConfig
from morphing_trainer.data.loading import IGNORED_LABEL
from morphing_trainer.errors import ConfigError
from morphing_trainer.layers.segments import SegmentedTrainer
from morphing_trainer.sharding import reshard
from morphing_trainer.validation.example import make_example
from morphing_trainer.validation.metrics import Tally, perplexity, summarise
from morphing_trainer.validation.names import METRICS


def show_all(args: MorphingConfig) -> None:
    """Ask for every metric and for the example where the arguments leave it open, as the command line does."""
    args.eval_metrics = list(METRICS) if args.eval_metrics is None else args.eval_metrics
    args.eval_example = True if args.eval_example is None else args.eval_example


class EvaluatingTrainer(SegmentedTrainer):
    """The evaluating part of `MorphingTrainer`.

    Raises:
        ConfigError: if what the arguments ask for needs a tokenizer, and there is none.
    """

    _tally: Tally | None = None

    def __init__(self, *positional: Any, **options: Any) -> None:
        super().__init__(*positional, **options)
        if not isinstance(self.processing_class, PreTrainedTokenizerBase):
            asked = ["eval_metrics: word_accuracy"] * ("word_accuracy" in (self.args.eval_metrics or []))
            asked += ["eval_example"] * bool(self.args.eval_example)
            if asked:
                raise ConfigError(
                    f"{' and '.join(asked)}: needs a tokenizer to decode tokens; pass one as processing_class."
                )

    # ---- Metrics ---------------------------------------------------------------------------------------------------

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As inherited; the loss is the mean over the counted tokens, and the metrics that were asked for are added."""
        wanted = self.args.eval_metrics or []
        shifts = bool(getattr(self, "_loss_shifts_labels", True))
        tally = self._tally = Tally(wanted, self.processing_class, shifts)
        self._samples_before = 0
        try:
            output: EvalLoopOutput = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        finally:
            self._tally = None
        table, metrics = tally.table(), output.metrics
        loss_key = f"{metric_key_prefix}_loss"
        if table is None or metrics is None or loss_key not in metrics:
            return output
        summary = summarise(self.accelerator.gather(table), averaged=self._averages_tokens)
        if summary.loss is not None:
            metrics[loss_key] = summary.loss
        found = {
            "perplexity": perplexity(metrics[loss_key]),
            "token_accuracy": summary.token_accuracy,
            "word_accuracy": summary.word_accuracy,
        }
        for name in wanted:
            value = found[name]
            if value is not None:  # a metric of the same name from the user's own compute_metrics stays
                metrics.setdefault(f"{metric_key_prefix}_{name}", value)
        return output

    @property
    def _averages_tokens(self) -> bool:
        ours = self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        return bool(self.args.average_tokens_across_devices and ours)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As inherited; what the metrics need is taken from it, and samples that come a second time do not count."""
        tally, labels = self._tally, inputs.get("labels")
        if tally is None or labels is None or "shift_labels" in inputs:
            return self._predicted(model, inputs, prediction_loss_only, ignore_keys)
        kept = self._kept(len(labels))
        if kept < len(labels):
            labels = labels.clone()
            labels[kept:] = IGNORED_LABEL
            inputs = {**inputs, "labels": labels}
        only_loss = prediction_loss_only and not tally.predicts
        loss, logits, given = self._predicted(model, inputs, only_loss, ignore_keys)
        first = self._samples_before * self.args.world_size + self.args.process_index * len(labels)
        self._samples_before += len(labels)
        if loss is not None:
            scores = logits[0] if isinstance(logits, tuple) else logits
            tally.add(loss, labels, scores if tally.predicts else None, kept, first)
        return (loss, None, None) if prediction_loss_only else (loss, logits, given)

    def _predicted(self, *arguments: Any) -> tuple[Tensor | None, Any, Any]:
        found: tuple[Tensor | None, Any, Any] = super().prediction_step(*arguments)
        return found

    def _kept(self, rows: int) -> int:
        """How many samples of this process's batch are new: the last batch is filled up with samples from the start."""
        loader = self.accelerator.gradient_state
        if self.args.world_size == 1 or not loader.end_of_dataloader or loader.remainder <= 0:
            return rows
        return int(min(rows, max(0, loader.remainder - self.args.process_index * rows)))

    # ---- Example ---------------------------------------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """As inherited; with `eval_example`, the main process also shows how the model continues the first sample."""
        metrics: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(chosen, str):
            chosen = self.eval_dataset[chosen]
        # Of several sets each is evaluated, and shown, by a call of its own. What only the main process does must not
        # wait for others. An evaluation that only shows what an operation did has shown it before.
        shows = self.session is None or self.session.listening
        # To write with a sharded model takes all processes.
        writes = self.is_world_process_zero() or self.is_sharded
        if shows and self.args.eval_example and not isinstance(chosen, dict) and writes:
            self._show_example(chosen, metric_key_prefix.removeprefix("eval").lstrip("_"))
        return metrics

    def _show_example(self, dataset: Any, name: str) -> None:
        sample = next(iter(dataset), None)
        example = None
        if isinstance(sample, Mapping):
            example = make_example(self.bare_model, self.processing_class, sample, self.args.eval_example_tokens, name)
            reshard(self.bare_model)
        if example is not None and self.is_world_process_zero():
            self.callback_handler.announce("on_example", self.args, self.state, self.control, example=example)
