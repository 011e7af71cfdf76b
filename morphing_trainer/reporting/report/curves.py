"""The charts of a run: what each shows, of which numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from morphing_trainer.reporting.console import count, loss_text, operation_text, rate_text
from morphing_trainer.reporting.growth import kind_of, sizes
from morphing_trainer.reporting.report.chart import Curve, Frame
from morphing_trainer.reporting.report.story import Story
from morphing_trainer.reporting.report.text import cut
from morphing_trainer.reporting.report.thinning import thinned
from morphing_trainer.reporting.series import SMOOTH_FROM, Points, is_loss, metric_name, smoothed

MOST_STAGES = 200
_LOOKS = ("two", "three", "four", "five")
_KINDS = {"attn": "attention", "mlp": "MLP", "wte": "token embedding", "wpe": "positions"}


@dataclass(frozen=True)
class Chart:
    """One chart.

    `write`: a value as text; `logs`: it can be looked at on a logarithmic scale, too, and `log`: only on that; `zero`:
    the scale begins at 0; `whole`: values are whole numbers; `note`: what there is to know.
    """

    name: str
    title: str
    curves: Sequence[Curve]
    write: Callable[[float], str]
    height: int = 150
    logs: bool = False
    log: bool = False
    zero: bool = False
    whole: bool = False
    note: str = ""

    def text(self, value: float) -> str:
        """A value, finite or not."""
        return self.write(value) if math.isfinite(value) else loss_text(value)


def frame_of(story: Story) -> Frame:
    """Operations and stages, which all charts of a run mark."""
    operations = []
    for number, change in enumerate(story.changes, 1):
        record, undone = change.record, change.undone is not None
        words = f"{number}. step {record.step:,}: {cut(operation_text(record.operation, record.value), 120)}"
        look = f"{kind_of(record)} undone" if undone else kind_of(record)
        operations.append((float(record.step), look, f"{words} (undone)" if undone else words))
    begins = [*story.stages.items(), ("", story.end)]
    stages = [(cut(name, 80), first, last) for (name, first), (_, last) in pairwise(begins)]
    return Frame(story.end, operations, stages[:MOST_STAGES])


def charts(story: Story) -> list[Chart]:
    """All for which there are numbers; the losses first."""
    found = [_losses(story), _size(story), _rate(story), _batch(story), _accuracy(story), _gradients(story)]
    found += [_speed(story), _memory(story), *_analysis(story)]
    return [chart for chart in found if chart.curves]


def _line(name: str, points: Points, look: str, **options: Any) -> Curve:
    """The points themselves; as many as can be seen."""
    return Curve(name, thinned(points), look, **options)


def _curve(name: str, points: Points, look: str) -> Curve:
    """Of many points an average, with the points themselves behind it."""
    if len(points) < SMOOTH_FROM:
        return Curve(name, points, look)
    with np.errstate(over="ignore", invalid="ignore"):  # a run may log any number
        steps, values = smoothed(points)
    return Curve(name, thinned(list(zip(steps, values, strict=True))), look, faint=thinned(points))


def _losses(story: Story) -> Chart:
    curves = []
    if train := story.points("loss"):
        curves.append(_curve("training loss", train, "one"))
    keys = [key for key in story.keys("eval_") if is_loss(key)]
    for key, look in zip(keys, _LOOKS, strict=False):
        curves.append(_line(cut(metric_name(key), 60), story.points(key), look, dots=True))
    many = any(curve.faint for curve in curves)
    note = "The thick line of the training loss is an average over about 2 % of the points." if many else ""
    return Chart("loss", "Loss", curves, loss_text, height=300, logs=True, note=note)


def _accuracy(story: Story) -> Chart:
    keys = story.keys("eval_", "accuracy")
    curves = [
        _line(cut(metric_name(key).removeprefix("evaluation "), 60), story.points(key), look, dots=True)
        for key, look in zip(keys, _LOOKS, strict=False)
    ]
    return Chart("accuracy", "Evaluation accuracy", curves, percent, zero=True)


def _size(story: Story) -> Chart:
    found = sizes(story.records, [float(record.step) for record in story.records], story.end)
    if not found and (known := story.standing.model.get("parameters")):
        found = {"parameters": [(0.0, float(known)), (story.end, float(known))]}
    looks = {"parameters": "one", "trainable": "two"}
    curves = [_line(name, points, looks[name], step=True) for name, points in found.items()]
    return Chart("size", "Parameters", curves, lambda value: count(int(value)), zero=True)


def _rate(story: Story) -> Chart:
    points = story.points("learning_rate")
    curves = [_line("learning rate", points, "one")] if points else []
    return Chart("rate", "Learning rate", curves, rate_text, zero=True)


def _batch(story: Story) -> Chart:
    """Samples of an optimizer step, from the settings of the moment."""
    start = next((event.get("settings") for event in story.events if event["event"] == "start"), None)
    first = story.records[0].before if story.records else start if isinstance(start, dict) else {}
    found = [(0.0, _samples(first, story.processes))]
    found += [(float(record.step), _samples(record.after, story.processes)) for record in story.records]
    known = [(step, samples) for step, samples in found if samples is not None]
    points = [*known, (story.end, known[-1][1])] if known else []
    curves = [_line("samples per step", points, "one", step=True)] if points else []
    note = f"batch per device \u00d7 accumulation \u00d7 {story.processes} processes" if story.processes > 1 else ""
    return Chart("batch", "Batch size", curves, lambda value: f"{value:,.0f}", zero=True, whole=True, note=note)


def _samples(settings: Any, processes: int) -> float | None:
    exact = settings.get("step_samples")
    if type(exact) is int and exact > 0:
        return float(exact)
    batch, accumulation = settings.get("batch_size"), settings.get("grad_accum")
    if type(batch) is not int or type(accumulation) is not int or not 0 < batch * accumulation < 10**12:
        return None
    return float(batch * accumulation * processes)


def _gradients(story: Story) -> Chart:
    points = story.points("grad_norm")
    curves = [_curve("norm of the gradients", points, "one")] if points else []
    return Chart("gradients", "Gradient norm", curves, lambda value: f"{value:.3g}", log=True)


def _speed(story: Story) -> Chart:
    """Tokens per second between log lines. What evaluations, morphs and saving took in between counts, too."""
    points = speed(story)
    slow = "What evaluations, operations and checkpoints took in between counts, too."
    curves = [_curve("tokens per second", points, "one")] if points else []
    return Chart("speed", "Speed (tokens/s)", curves, lambda value: count(float(f"{value:.3g}")), zero=True, note=slow)


def speed(story: Story) -> Points:
    """(step, tokens per second) from training line to training line."""
    found: Points = []
    before: tuple[float, float] | None = None
    for line in story.lines:
        tokens, seconds = line.get("tokens"), line.get("seconds")
        if "loss" not in line or not isinstance(tokens, int | float) or not isinstance(seconds, int | float):
            continue
        if before is not None and seconds > before[1] and tokens > before[0]:
            found.append((float(line["step"]), (tokens - before[0]) / (seconds - before[1])))
        before = float(tokens), float(seconds)
    return found


def _memory(story: Story) -> Chart:
    names = {
        "memory/device_peak_gib": "device, peak",
        "memory/device_gib": "device, at the log line",
        "memory/process_gib": "process",
    }
    found = [(name, points) for key, name in names.items() if (points := story.points(key))]
    curves = [_curve(name, points, look) for (name, points), look in zip(found, ("one", *_LOOKS), strict=False)]
    note = "The largest of all processes." if story.processes > 1 else ""
    return Chart("memory", "Memory (GiB)", curves, lambda value: f"{value:.3g}", zero=True, note=note)


def _analysis(story: Story) -> list[Chart]:
    looks = ("one", *_LOOKS)

    def curves(measure: str) -> list[Curve]:
        found = [(name, story.points(f"analysis/{measure}_{kind}")) for kind, name in _KINDS.items()]
        known = [(name, points) for name, points in found if points]
        return [_line(name, points, look, dots=True) for (name, points), look in zip(known, looks, strict=False)]

    ranks = curves("rank_share")
    if use := story.points("analysis/rank_use"):
        ranks.append(_line("adapters", use, "five", dots=True))
    what = "1 \u2212 cosine between the weights now and at the start."
    drift = Chart("drift", "Drift of the weights", curves("drift_start"), "{:.3g}".format, zero=True, note=what)
    return [Chart("ranks", "Effective rank of full rank", ranks, percent, zero=True), drift]


def percent(value: float) -> str:
    """`4.27 %`."""
    return f"{100 * value:.3g} %" if math.isfinite(value) else loss_text(value)
