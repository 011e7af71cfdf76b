"""What may stand in a plan: validated, every field held against its type and limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from morphing_trainer.operations.base import Count, Factor, whole


def _finite(value: float) -> float:
    if not 0 <= value < float("inf"):
        raise ValueError(f"must be a finite number from 0, is {value}")
    return value


Rate = Annotated[float, AfterValidator(_finite), WithJsonSchema({"type": "number", "minimum": 0})]
Share = Annotated[float, Field(gt=0, lt=1)]
Sources = str | list[str]


class Origin(BaseModel):
    """Where text comes from, and how it is read: the data arguments of a run. What is left out is as the run says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    dataset: Sources | None = None
    dataset_config: str | None = None
    validation_file: Sources | None = None
    train_split: str | None = None
    text_column: str | None = None
    validation_split: Share | None = None
    streaming: bool | None = None
    max_documents: Count | None = None
    sample_mode: Literal["packing", "continuation"] | None = None
    language: str | None = None
    block_size: Annotated[int, BeforeValidator(whole), Field(ge=2)] | None = None

    def overrides(self) -> dict[str, Any]:
        """The data arguments that are given here, `dataset` aside."""
        return {
            name: tuple(value) if isinstance(value := getattr(self, name), list) else value
            for name in Origin.model_fields
            if name != "dataset" and getattr(self, name) is not None
        }


class Part(Origin):
    """One source of a mix."""

    dataset: Sources
    weight: Factor = 1.0


class StageFields(Origin):
    """One stage of a plan."""

    model_config = ConfigDict(
        json_schema_extra={  # as `_one_of_each` has it
            "allOf": [
                {
                    "oneOf": [
                        {"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in one_of_these
                    ]
                }
                for one_of_these in (("epochs", "steps", "tokens"), ("dataset", "mix"))
            ]
        }
    )

    mix: Annotated[list[Part], Field(min_length=1)] | None = None
    epochs: Factor | None = None
    steps: Count | None = None
    tokens: Count | None = None
    learning_rate: Rate | None = None
    schedule: Any = None
    desc: str | None = None

    @model_validator(mode="after")
    def _one_of_each(self) -> StageFields:
        lengths = [name for name in ("epochs", "steps", "tokens") if getattr(self, name) is not None]
        if len(lengths) != 1:
            what = (
                f"gives {' and '.join(lengths)}; keep one" if lengths else "has no length; give epochs, steps or tokens"
            )
            raise ValueError(what)
        if (self.dataset is None) == (self.mix is None):
            what = (
                "gives both dataset and mix; keep one" if self.mix else "has no data; give dataset, or mix with several"
            )
            raise ValueError(what)
        return self

    @property
    def parts(self) -> list[Part]:
        """Its sources: those of its mix under what the stage says for all, or the one there is."""
        if self.mix is None:
            return [Part(dataset=self.dataset or "", **self._common())]
        return [part.model_copy(update={**self._common(), **_given(part)}) for part in self.mix]

    def _common(self) -> dict[str, Any]:
        return {
            name: value for name, value in _given(self).items() if name in Origin.model_fields and name != "dataset"
        }


def _given(model: BaseModel) -> dict[str, Any]:
    return {name: getattr(model, name) for name in model.model_fields_set}
