"""The course of a run: its stages, one after the other, and how many optimizer steps they take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers.trainer_utils import has_length

from morphing_trainer.config import MorphingConfig
from morphing_trainer.data.cursor import Batch, Cursor
from morphing_trainer.data.orders import Single, order_of, seed_of
from morphing_trainer.errors import ConfigError, DataError, suggest
from morphing_trainer.run.batches import settled
from morphing_trainer.run.length import Length
from morphing_trainer.run.state import RunState
from morphing_trainer.run.statistics import Totals
from morphing_trainer.run.steps import batch_of, total_steps
from morphing_trainer.settings import Settings


@dataclass(frozen=True)
class TrainingStage:
    """One stage of a training plan.

    Attributes:
        name: by which schedules and reports call it.
        train_dataset, eval_dataset: map-style data sets, as `Trainer` takes them.
        length: when it is over.
        learning_rate: peak rate from its beginning on; None: as it is.
    """

    name: str
    train_dataset: Any
    eval_dataset: Any
    length: Length
    learning_rate: float | None = None

    def facts(self) -> dict[str, Any]:
        """What a checkpoint remembers of it, as plain JSON."""
        return {
            "name": self.name,
            "length": str(self.length),
            "learning_rate": self.learning_rate,
            "samples": len(order_of(self.train_dataset)),
            "data": getattr(self.train_dataset, "fingerprint", None),
        }


class Course:
    """The stages of a run and their lengths in steps, under the settings of the moment.

    Raises:
        DataError: if a data set has no length, or no sample.
        ConfigError: if two stages have one name.
    """

    def __init__(self, stages: Sequence[TrainingStage], args: MorphingConfig) -> None:
        self.stages = tuple(stages)
        self._seed = args.data_seed if args.data_seed is not None else args.seed
        self._shuffle = args.train_sampling_strategy == "random"
        self.processes = int(args.world_size)
        self._drop_last = args.dataloader_drop_last
        self._counted: dict[tuple[int, int, Batch], tuple[int, int]] = {}
        names = [stage.name for stage in self.stages]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"stages: two are called {twice[0]!r}. Give each a name of its own.")
        for stage in self.stages:
            if stage.train_dataset is None or not has_length(stage.train_dataset):
                of = "" if len(self.stages) == 1 else f" of stage {stage.name!r}"
                raise DataError(
                    f"train_dataset{of}: has no length (it is missing or a stream), so its samples cannot be counted; "
                    "pass a map-style data set."
                )

    @property
    def names(self) -> list[str]:
        return [stage.name for stage in self.stages]

    def cursor(self, index: int) -> Cursor:
        """The start of a stage's data."""
        order = order_of(self.stages[index].train_dataset)
        # Two stages over the same data shall not begin with the same samples; the first reads as plain training does.
        seed = seed_of(self._seed, f"stage {index}") if index else self._seed
        return Cursor(len(order), seed, self._shuffle, arrangement=None if isinstance(order, Single) else order)

    def fewest_samples(self, index: int = 0) -> int:
        """Samples of the shortest epoch in stage `index` and later ones."""
        return min(len(order_of(stage.train_dataset)) for stage in self.stages[index:])

    def settled(self, settings: Settings) -> Settings:
        """The settings with as many micro-batches as the samples of a step need."""
        return settled(settings, self.processes)

    def batch(self, settings: Settings) -> Batch:
        return batch_of(settings, self.processes, self._drop_last)

    def measure(self, state: RunState, *, current: bool = True) -> None:
        """Set the steps at which the current stage and the whole run end, as seen from where the run stands.

        Args:
            current: whether the current stage may end elsewhere; otherwise only what comes after it is measured.
        """
        if current:
            done = (state.stage_steps, state.stage_tokens)
            state.stage_end = state.step + self._left(state.stage_index, state.cursor, state.settings, *done)
        state.end = state.stage_end
        if state.stage_index + 1 < len(self.stages):  # a last stage may turn out to have ended before
            state.end = max(state.step, state.end) + self.steps_from(state.stage_index + 1, state.settings)

    def steps_from(self, index: int, settings: Settings) -> int:
        """Optimizer steps of stage `index` and all later ones."""
        later = range(index, len(self.stages))
        return sum(self._left(number, self.cursor(number), settings) for number in later)

    def step_done(self, state: RunState) -> None:
        """Correct the end of a stage whose length is given in tokens, where samples differ in length."""
        length = self.stages[state.stage_index].length
        if length.unit != "tokens":
            return
        enough = state.stage_tokens >= length.value
        if enough != (state.step >= state.stage_end):
            self.measure(state)

    def enter(self, state: RunState, index: int) -> Settings:
        """Begin stage `index`; stages between are passed over, but for their learning rates.

        Returns the settings that it begins with.
        """
        settings = state.settings
        state.epochs_before += state.cursor.epoch + 1
        state.cursor = self.cursor(index)
        for stage in self.stages[state.stage_index + 1 : index + 1]:
            state.stages[stage.name] = state.step
            state.totals[stage.name] = Totals()
            settings = with_rate(settings, stage)
        state.stage_tokens, state.evaluations, state.epoch_closed = 0, [], False
        return settings

    def steps_in_epoch(self, state: RunState) -> int:
        """Optimizer steps of the epoch that the run is in."""
        return self._epoch(state.stage_index, state.cursor, self.batch(state.settings), state.cursor.epoch)[0]

    def dropped_share(self, state: RunState) -> float:
        """The share of an epoch's samples that is left out at the ends of steps, see `Layout`."""
        if not state.cursor.epochs_differ:
            return 0.0
        _, read = self._epoch(state.stage_index, state.cursor, self.batch(state.settings), state.cursor.epoch)
        return 1 - read / state.cursor.length

    def find(self, name: str) -> int:
        """The index of stage `name`.

        Raises:
            ConfigError: if there is none.
        """
        if name not in self.names:
            raise ConfigError(f"there is no stage {name!r}{suggest(name, self.names)}")
        return self.names.index(name)

    def _left(self, index: int, cursor: Cursor, settings: Settings, steps: int = 0, tokens: int = 0) -> int:
        """Optimizer steps that stage `index` still takes from the cursor's position, after `steps` and `tokens`."""
        stage, batch = self.stages[index], self.batch(settings)
        if stage.length.unit == "epochs":
            return total_steps(stage.length.value, cursor, batch, lambda e: self._epoch(index, cursor, batch, e)[0])
        if stage.length.unit == "steps":
            return int(stage.length.value) - steps
        missing = stage.length.value - tokens
        count, samples = self._epoch(index, cursor, batch, cursor.epoch)
        # A last step may be smaller than the others, and samples are left out: what counts is the mean over an epoch.
        return max(0, math.ceil(missing * count / max(1.0, samples * tokens_per_sample(stage.train_dataset))))

    def _epoch(self, index: int, cursor: Cursor, batch: Batch, epoch: int) -> tuple[int, int]:
        """Steps of an epoch, and samples read in it. Kept, because texts have to be arranged to count them."""
        key = (index, epoch if cursor.epochs_differ else 0, batch)
        if key not in self._counted:
            layout = cursor.layout(batch, epoch)
            self._counted[key] = (layout.steps, layout.samples)
        return self._counted[key]


def with_rate(settings: Settings, stage: TrainingStage) -> Settings:
    """The settings that a stage begins with."""
    if stage.learning_rate is None:
        return settings
    return Settings(**{**settings.to_dict(), "learning_rate": stage.learning_rate})


def tokens_per_sample(dataset: Any) -> float:
    """Mean length of a data set's samples in tokens: its own word for it, or else the length of its first sample."""
    own = getattr(dataset, "tokens_per_sample", None)
    return float(own) if own is not None else float(len(dataset[0]["input_ids"]))
