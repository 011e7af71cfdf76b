"""The tables of docs/benchmarks/growth.md, as Markdown. Pure functions of what has been trained."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from math import inf

from benchmarks.growth.experiment import Experiment
from benchmarks.growth.frontier import Saving, frontiers
from benchmarks.growth.reading import COSTS, PAYS, Trained, best, judged, known_bounds, mean_bounds, unbeaten
from benchmarks.results import Table

NOTHING = "-"


def missing(trained: Trained) -> str:
    """Which runs there are not yet."""
    total = len(trained.results) + sum(len(seeds) for seeds in trained.missing.values())
    if not trained.missing:
        return f"All {total} runs of the experiment are there."
    lines = [f"- {name}: {_seeds(seeds)}" for name, seeds in trained.missing.items()]
    return "\n".join([f"{len(trained.results)} of {total} runs are there. Not trained yet:", "", *lines])


def setup(trained: Trained) -> str:
    """What all runs have in common."""
    it: Experiment = trained.experiment
    text = trained.results[0]["text"] if trained.results else {"name": "any", "characters": 0}
    rows = [
        ["text", f"{text['name']}, {text['characters']:,} characters, each a token"],
        ["target", f"GPT-2 of {it.target.layers} blocks, {it.target.hidden} wide, {it.target.heads} heads, "
         f"MLP {it.target.mlp}"],
        ["a step", f"{it.batch_size} samples of {it.block_size} tokens"],
        ["learning rate", f"{it.learning_rate:g}: {it.warmup_steps} steps of warm-up, then constant, over the last "
         f"{100 * it.decay_share:g} % of the run along a cosine to zero"],
        ["recipes", f"{it.steps:,} steps, unless the name says otherwise"],
        ["from scratch", f"{', '.join(f'{steps:,}' for steps in sorted(it.scratch))} steps"],
        ["seeds", _listed(it.seeds)],
    ]  # fmt: skip
    return _table(["", ""], rows)


def headline(trained: Trained) -> str:
    """The best recipe in a sentence."""
    name = best(trained)
    if name is None:
        known = any(not judged(trained, saving).startswith("none yet") for saving in trained.flops.values())
        return "No recipe pays." if known else "No recipe has a verdict yet."
    flops, seconds = trained.flops[name], trained.seconds[name]
    told = (
        f"Most is saved by *{name}*: to train the target from scratch to the same final loss takes {times(flops)} "
        f"times the FLOPs, and {times(seconds)} times the processor seconds "
        f"(mean of {len(flops.seeds)} seeds, and their range)."
    )
    if control := unbeaten(trained, name):
        losses = f"{trained.mean(control, 'loss'):.3f} against {trained.mean(name, 'loss'):.3f}"
        more = trained.mean(control, "flops") / trained.mean(name, "flops")
        worth = ": here the large model is not worth its cost" if more <= 1 else ""
        told += f" But *{control}*, which never grows, ends lower ({losses}) with {more:.2f} times its FLOPs{worth}."
    return told


def scratch(trained: Trained) -> str:
    """The runs that make the frontier, and how well it tells one of them from the others."""
    rows = []
    for name in trained.scratch:
        paces = [run["seconds"] / run["flops"] * 1e12 for run in trained.of(name)]
        rows.append([name, *_spent(trained, name), f"{min(paces):.1f} to {max(paces):.1f}", str(len(paces))])
    told = _table(["run", "final loss", "TFLOP", "seconds", "seconds per TFLOP", "seeds"], rows)
    if checked := [ratio for line in frontiers(trained.results).values() for ratio in line.left_out()]:
        told += (
            f"\n\nWhere a run between two others is left out, the line through these says that its loss costs "
            f"{_ranged(checked)} times the FLOPs that it did (mean over runs and seeds, and range)."
        )
    return told


def recipes(trained: Trained) -> str:
    """A table for each group; the numbers are those of the pictures."""
    numbers = {name: str(number) for number, name in enumerate(trained.experiment.recipes, 1)}
    columns = ["", "recipe", "final loss", "TFLOP", "seconds", "times FLOPs", "times seconds", "seeds"]
    parts = []
    for title, names in trained.groups.items():
        rows = []
        for name in names:
            if name not in trained.flops:
                rows.append([numbers[name], name, *[NOTHING] * 5, "0", "not trained yet"])
                continue
            saving = trained.flops[name]
            ratios = [times(saving), times(trained.seconds[name])]
            rows.append(
                [numbers[name], name, *_spent(trained, name), *ratios, str(len(saving.seeds)), judged(trained, saving)]
            )
        parts.append(f"### {title}\n\n{_table([*columns, 'verdict'], rows)}")
    return "\n\n".join(parts)


def pairs(trained: Trained) -> str:
    """Recipes called `BASE, CHANGE` against BASE, where both spend the same: differences seed by seed."""
    rows = []
    for name in trained.flops:
        base, _, change = name.rpartition(", ")
        ours, theirs = _by_seed(trained.flops[name]), _by_seed(trained.flops[base]) if base in trained.flops else {}
        shared = [seed for seed in ours if seed in theirs]
        if not shared or any(abs(ours[seed][1] / theirs[seed][1] - 1) > 1e-3 for seed in shared):
            continue
        gaps = [ours[seed][0] - theirs[seed][0] for seed in shared]
        worth = [
            ours[seed][2][0] / theirs[seed][2][0]
            for seed in shared
            if all(least == most for least, most in (ours[seed][2], theirs[seed][2]))
        ]
        rows.append(
            [
                base,
                change,
                ", ".join(f"{gap:+.4f}" for gap in gaps),
                f"{statistics.fmean(gaps):+.4f}",
                _ranged(worth) if len(worth) == len(shared) else NOTHING,
                difference(gaps, worth if len(worth) == len(shared) else [], trained.experiment.seeds),
            ]
        )
    columns = ["recipe", "changed", "difference of the final loss, seed by seed", "mean", "worth in FLOPs", "verdict"]
    return _table(columns, rows) if rows else "None of the pairs is there yet."


def difference(gaps: Sequence[float], worth: Sequence[float], seeds: Sequence[int]) -> str:
    """What paired differences of losses show, and whether they are large enough to matter.

    Args:
        worth: savings with the change over those without it, by seed; empty where they are not known.
    """
    if len(gaps) < len(seeds):
        return f"none yet: {len(gaps)} of {len(seeds)} seeds"
    if not (all(gap > 0 for gap in gaps) or all(gap < 0 for gap in gaps)):
        return "no difference that these seeds show"
    said = "worse in every seed" if gaps[0] > 0 else "better in every seed"
    small = worth and all(COSTS <= each <= PAYS for each in worth)
    return f"{said}, by less than {100 * (PAYS - 1):.0f} % of the FLOPs" if small else said


SECTIONS: Mapping[str, Callable[[Trained], str]] = {
    "missing": missing,
    "setup": setup,
    "best": headline,
    "scratch": scratch,
    "recipes": recipes,
    "pairs": pairs,
}
"""Part of a page -> what makes it."""


def times(saving: Saving) -> str:
    """Ratios as `2.03 (1.95 to 2.11)`; a bound as `>1.8`, where the frontier does not reach."""
    bounds = known_bounds(saving)
    if not bounds:
        return NOTHING
    mean = _bounded(*mean_bounds(saving))
    return mean if len(bounds) == 1 else f"{mean} ({_bounded(*min(bounds))} to {_bounded(*max(bounds))})"


def _bounded(least: float, most: float) -> str:
    if least == most:
        return f"{least:.2f}"
    if most == inf:
        return f">{least:.2f}" if least else "?"
    return f"<{most:.2f}"  # of several seeds, one of which may be known


def _ranged(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f} to {max(values):.2f})"


def _spent(trained: Trained, name: str) -> list[str]:
    """Final loss with its spread, TFLOP, seconds."""
    losses = [result["loss"] for result in trained.of(name)]
    spread = f" ± {statistics.stdev(losses):.3f}" if len(losses) > 1 else ""
    spent = [f"{trained.mean(name, 'flops') / 1e12:.2f}", f"{trained.mean(name, 'seconds'):.0f}"]
    return [f"{statistics.fmean(losses):.3f}{spread}", *spent]


def _by_seed(saving: Saving) -> dict[int, tuple[float, float, tuple[float, float]]]:
    return dict(zip(saving.seeds, zip(saving.losses, saving.costs, saving.bounds, strict=True), strict=True))


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {_listed(seeds)}"


def _listed(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return Table(columns, rows, "").markdown()
