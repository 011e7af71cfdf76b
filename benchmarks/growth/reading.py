"""What has been trained of an experiment, what is missing, and what its recipes save."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from math import inf
from pathlib import Path
from typing import Any

import yaml

from benchmarks.growth.experiment import Experiment, described, load, variants
from benchmarks.growth.frontier import Saving, savings

SEEDS = 3
"""With fewer there is no verdict."""

PAYS, COSTS = 1.05, 0.95
"""Ratios from which on something is said, by the seed that speaks least for it."""


@dataclass(frozen=True)
class Trained:
    """An experiment with the results that there are.

    Attributes:
        groups: title -> names of recipes, as comments in the experiment's file head them.
        results: as benchmarks.growth.run wrote them, from scratch first, in the order of the experiment.
        missing: name of a run -> seeds that have not been trained.
    """

    experiment: Experiment
    groups: Mapping[str, Sequence[str]]
    results: Sequence[Mapping[str, Any]]
    missing: Mapping[str, Sequence[int]]

    def of(self, name: str) -> list[Mapping[str, Any]]:
        """Results of all seeds."""
        return [result for result in self.results if result["name"] == name]

    @property
    def scratch(self) -> list[str]:
        """Names of the runs from scratch that there are, shortest first."""
        return list(dict.fromkeys(result["name"] for result in self.results if result["scratch"]))

    @cached_property
    def flops(self) -> dict[str, Saving]:
        """Recipe -> what it saves in FLOPs, of the recipes that there are."""
        return {saving.name: saving for saving in savings(self.results)}

    @cached_property
    def seconds(self) -> dict[str, Saving]:
        """The same in processor seconds."""
        return {saving.name: saving for saving in savings(self.results, "seconds")}

    def mean(self, name: str, key: str) -> float:
        return statistics.fmean(result[key] for result in self.of(name))

    def curve(self, name: str, axis: int) -> list[tuple[float, float]]:
        """Points of the evaluation loss, means over the seeds; `axis`: 0 for FLOPs, 1 for seconds."""
        curves = [result["curve"] for result in self.of(name)]
        return [
            (statistics.fmean(point[axis] for point in points), statistics.fmean(point[2] for point in points))
            for points in zip(*curves, strict=True)
        ]


def read(file: Path, results: Path) -> Trained:
    """Read an experiment, and what has been trained of it.

    Args:
        results: folder of which each experiment has a folder.

    Raises:
        ValueError: if a result is not of the run that its file names, as after a change of the experiment, or if
            results are of several texts.
    """
    experiment = load(file)
    found: list[dict[str, Any]] = []
    text: Mapping[str, Any] | None = None
    missing: dict[str, list[int]] = {}
    for variant in variants(experiment):
        for seed in experiment.seeds:
            path = results / experiment.name / f"{variant.file}-{seed}.json"
            if not path.exists():
                missing.setdefault(variant.name, []).append(seed)
                continue
            result = read_result(path, {**described(experiment, variant), "seed": seed, "text": text})
            text = result["text"]
            found.append(result)
    return Trained(experiment, groups_of(file.read_text(encoding="utf-8")), found, missing)


def read_result(path: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """What came out of a run.

    Args:
        expected: what the run is to have been of; None where anything will do. Of a text its digest counts.

    Raises:
        ValueError: if it was of something else, or cannot be read.
    """
    again = "give another folder as --results, or remove it to train it again"
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        told = {**result, "text": result["text"]["sha256"]}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: is no result of a run ({error}); {again}") from error
    text = expected.get("text")
    asked = {**expected, "text": text["sha256"] if text else None}
    if other := [key for key, value in asked.items() if value is not None and told.get(key) != value]:
        had = ", ".join(f"{key} {result.get(key)}" for key in other)
        raise ValueError(f"{path}: is of a run with {had}, which is not what is asked for; {again}")
    return result


def groups_of(text: str) -> dict[str, list[str]]:
    """Recipes under the comments that stand right above the first of them in an experiment's file."""
    lines = text.splitlines()
    document: Any = yaml.compose(text)
    recipes = next(value for key, value in document.value if key.value == "recipes")
    groups: dict[str, list[str]] = {}
    title = "Recipes"
    for key, _ in recipes.value:
        above = [line.strip() for line in lines[: key.start_mark.line]]
        comments = list(takewhile(lambda line: line.startswith("#"), reversed(above)))
        title = " ".join(line.lstrip("# ") for line in reversed(comments)) or title
        groups.setdefault(title, []).append(key.value)
    return groups


def mean_bounds(saving: Saving) -> tuple[float, float]:
    """Between which the mean lies, over the seeds that have a frontier."""
    bounds = known_bounds(saving) or [(0.0, inf)]
    return statistics.fmean(least for least, _ in bounds), statistics.fmean(most for _, most in bounds)


def known_bounds(saving: Saving) -> list[tuple[float, float]]:
    """Of the seeds that have a frontier."""
    return [bounds for bounds in saving.bounds if bounds != (0, inf)]


def verdict(saving: Saving) -> str:
    """What its seeds show, in plain words; docs/benchmarks/growth.md tells the rule."""
    if len(saving.losses) < SEEDS:
        return f"none yet: {len(saving.losses)} of {SEEDS} seeds"
    if len(known_bounds(saving)) < len(saving.losses):
        return "none yet: a seed has no line from scratch"
    said = "no difference that these seeds show"
    if min(least for least, _ in saving.bounds) > PAYS:
        said = "pays"
    elif max(most for _, most in saving.bounds) < COSTS:
        said = "costs more"
    beyond = ""
    if all(most == inf for _, most in saving.bounds):
        beyond = "better than any run from scratch"
    elif all(least == 0 for least, _ in saving.bounds):
        beyond = "worse than the shortest run from scratch"
    known = said if said in ("pays", "costs more") else "what it saves is not known"
    return f"{known}; {beyond}" if beyond else said


def judged(trained: Trained, saving: Saving) -> str:
    """The verdict, which waits for all runs from scratch: a longer one may still enclose the loss."""
    found = verdict(saving)
    waits = any(variant.scratch and variant.name in trained.missing for variant in variants(trained.experiment))
    return "none yet: runs from scratch are missing" if waits and not found.startswith("none yet") else found


def best(trained: Trained) -> str | None:
    """Name of the recipe that saves most FLOPs, of those that change something and have a verdict that it pays."""
    recipes = trained.experiment.recipes
    savings = [saving for name, saving in trained.flops.items() if recipes[name].schedule]
    paying = [saving for saving in savings if judged(trained, saving).startswith("pays")]
    return max(paying, key=lambda saving: mean_bounds(saving)[0]).name if paying else None


def unbeaten(trained: Trained, recipe: str) -> str | None:
    """Name of the smaller model that never grows and ends lowest, if that is lower than a recipe does."""
    recipes, loss = trained.experiment.recipes, trained.mean(recipe, "loss")
    small = [
        name for name in trained.flops if not recipes[name].schedule and (recipes[name].layers or recipes[name].mlp)
    ]
    lowest = min(small, key=lambda name: trained.mean(name, "loss"), default=None)
    return lowest if lowest is not None and trained.mean(lowest, "loss") < loss else None


def telling(trained: Trained, most: int = 5) -> list[str]:
    """Recipes for the pictures: the best of each group and the worst of all, in the order of the experiment."""
    means = {name: mean_bounds(saving)[0] for name, saving in trained.flops.items()}
    if not means:
        return []
    heads = [
        max(known, key=means.__getitem__) for g in trained.groups.values() if (known := [n for n in g if n in means])
    ]
    worst = min(means, key=means.__getitem__)
    chosen = {*sorted(heads, key=means.__getitem__, reverse=True)[: most - 1], worst}
    return [name for name in means if name in chosen]
