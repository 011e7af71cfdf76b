"""From the stages of a plan to data sets that a trainer takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from morphing_trainer.data.files import TABLE_READERS, TEXT_SUFFIXES
from morphing_trainer.data.mixture import Mixture
from morphing_trainer.data.opening import Data, open_data
from morphing_trainer.data.request import DataRequest
from morphing_trainer.errors import DataError
from morphing_trainer.plans.fields import Part
from morphing_trainer.plans.plan import Plan, PlannedStage
from morphing_trainer.run.course import TrainingStage

EMBEDDED = "demo"
"""The name, in a plan, of the text that comes with the library."""


@dataclass(frozen=True)
class OpenedStage:
    """A stage whose data has been found; its samples are not made yet."""

    stage: PlannedStage
    data: tuple[Data, ...]

    @property
    def block_size(self) -> int:
        """Tokens of the longest sample."""
        return max(data.block_size for data in self.data)

    def samples(self, tokenizer: PreTrainedTokenizerBase, n_positions: int | None) -> TrainingStage:
        """The stage with its samples.

        Raises:
            DataError: naming the stage.
        """
        fields = self.stage.fields
        try:
            splits = [data.samples(tokenizer, n_positions) for data in self.data]
            train, validation = splits[0].train, splits[0].validation
            if fields.mix is not None:
                weights = [part.weight for part in fields.mix]
                mixed = Mixture([split.train for split in splits], weights)
                held_out = Mixture([split.validation for split in splits], weights).in_proportion()
                return TrainingStage(self.stage.name, mixed, held_out, self.stage.length, fields.learning_rate)
        except DataError as error:
            raise DataError(f"stage {self.stage.name!r}: {error}") from error
        return TrainingStage(self.stage.name, train, validation, self.stage.length, fields.learning_rate)


def open_plan(plan: Plan, run: DataRequest) -> list[OpenedStage]:
    """Find the data of every stage.

    Args:
        run: the data arguments of the run, which hold where a stage says nothing else.

    Raises:
        DataError: naming the stage whose data is missing or unreadable.
    """
    opened = []
    for stage in plan.stages:
        try:
            data = tuple(open_data(requested(part, run)) for part in stage.fields.parts)
        except DataError as error:
            raise DataError(f"{plan.source}: stage {stage.name!r}: {error}") from error
        opened.append(OpenedStage(stage, data))
    return opened


def requested(part: Part, run: DataRequest) -> DataRequest:
    """What one source of a stage asks for."""
    return replace(run, **{**_named(part.dataset), **part.overrides()})


def _named(dataset: str | Sequence[str]) -> dict[str, str | tuple[str, ...] | None]:
    """The embedded text, files by their suffix, else a data set's name or folder."""
    if not isinstance(dataset, str):
        return {"train_file": tuple(dataset)}
    if dataset == EMBEDDED and not Path(dataset).exists():
        return {}
    is_file = Path(dataset).suffix.lower() in (*TEXT_SUFFIXES, *TABLE_READERS) and not Path(dataset).is_dir()
    return {"train_file": dataset} if is_file else {"dataset_name": dataset}
