"""The model card: what the model grew from and how, its shape and figures, its data, and how to load it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from morphing_trainer.hub import sections
from morphing_trainer.hub.data import Source
from morphing_trainer.hub.markdown import plain
from morphing_trainer.hub.sections import METRICS
from morphing_trainer.hub.timeline import timeline
from morphing_trainer.hub.told import Told
from morphing_trainer.run.salvage import number

TAGS = ("morphing_trainer", "generated_from_trainer", "gpt2")


def card(told: Told, repo: str, **given: Any) -> str:
    """The card of a model, as the text of a README.md.

    Args:
        repo: the repository that it will stand in.
        given: what the user says himself, by the names of `Trainer.create_model_card`; it comes first.
    """
    title = given.get("model_name") or repo.rpartition("/")[2]
    parts = [
        [f"# {plain(title)}", "", sections.summary(told)],
        ["## Load it", "", *sections.loading(told, repo)],
        timeline(told),
        sections.figures(told),
        sections.shape(told),
        sections.data(told),
        sections.training(told),
        sections.files(told),
    ]
    body = "\n\n".join("\n".join(part) for part in parts if part)
    return f"---\n{metadata(told, title, **given).to_yaml()}\n---\n\n{body}\n"


def metadata(told: Told, title: str, **given: Any) -> ModelCardData:
    """What the Hub reads: its search, its filters, the snippet that it shows."""
    found = told.data
    tags = [*TAGS, *(["lora"] if told.model.modules else []), *_texts(given.get("tags"))]
    base = given.get("finetuned_from") or told.base
    facts: dict[str, Any] = {"base_model_relation": "finetune"} if base else {}
    hub = [source.name for source in found if source.on_hub]
    results = _results(told, found)
    return ModelCardData(
        base_model=base,
        datasets=_texts(given.get("dataset_tags")) or hub or None,
        language=_texts(given.get("language")) or None,
        license=given.get("license"),
        library_name="peft" if told.model.modules else "transformers",
        pipeline_tag=next(iter(_texts(given.get("tasks"))), "text-generation"),
        tags=list(dict.fromkeys(tags)),
        model_name=title if results else None,
        eval_results=results or None,
        **facts,
    )


def _texts(given: Any) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())


def _results(told: Told, found: Sequence[Source]) -> list[EvalResult]:
    """The last evaluation, if it was on one data set of the Hub: the Hub shows results by data set."""
    line = told.evaluations[-1:]
    if len(found) != 1 or not found[0].on_hub or not line:
        return []
    source, results = found[0], []
    for key, (metric, name) in METRICS.items():
        value = number(line[0].get(key))
        if value is not None and math.isfinite(value):
            results.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type=source.name,
                    dataset_name=source.name,
                    dataset_config=source.config,
                    metric_type=metric,
                    metric_name=name,
                    metric_value=round(value, 6),
                )
            )
    return results
