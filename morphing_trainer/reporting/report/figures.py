"""The few figures of a run that matter, in words; and what to do next."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from morphing_trainer.reporting.console import count, duration, loss_text, scaled_text, shape_text
from morphing_trainer.reporting.report.story import Story
from morphing_trainer.reporting.standing import state_text
from morphing_trainer.run.standing import FAILED, FINISHED, INTERRUPTED, KILLED, RUNNING

ARROW = "\u2192"
_SIGNS = {FINISHED: "\u2713", RUNNING: "\u25b6", INTERRUPTED: "\u275a\u275a", FAILED: "\u2715", KILLED: "\u2715"}
_MOODS = {FINISHED: "good", RUNNING: "good", FAILED: "bad", KILLED: "bad"}


class Figure(NamedTuple):
    """`value` of what `label` names, and what else there is to say of it."""

    label: str
    value: str
    detail: str = ""


class State(NamedTuple):
    """How the run stands: a sign, one of good, bad and even, in words, and why it ended."""

    sign: str
    mood: str
    words: str
    why: str


def state_of(story: Story) -> State:
    """How the run stands. The process that trains is not named: it is another one tomorrow."""
    found = story.standing
    words = "running" if found.state == RUNNING else state_text(found)
    ended = found.ended or {}
    why = str(ended.get("error") or ended.get("reason") or "")
    return State(_SIGNS.get(found.state, "\u2013"), _MOODS.get(found.state, "even"), words, why)


def figures(story: Story) -> list[Figure]:
    """What is known, the most important first."""
    found = [*_losses(story), _steps(story), _tokens(story), _flops(story), _parameters(story), _time(story)]
    found += [_speed(story), _memory(story), _operations(story)]
    return [figure for figure in found if figure.value]


def _losses(story: Story) -> list[Figure]:
    def told(point: Mapping[str, Any] | None, label: str, detail: str = "") -> Figure:
        at = "" if point is None else f"at step {point['step']:,}{detail}"
        return Figure(label, "" if point is None else loss_text(point["loss"]), at)

    last, best = story.standing.evaluation, story.standing.best
    same = last is not None and last == best
    found = [told(last, "Evaluation loss", ", the best" if same else "")]
    if not same:
        found.append(told(best, "Best evaluation loss"))
    mean = story.totals.get("loss")
    whole = f", {loss_text(mean)} on average" if isinstance(mean, float) else ""
    return [*found, told(story.standing.loss, "Training loss", whole)]


def _steps(story: Story) -> Figure:
    step, end = story.standing.step, story.standing.end
    if not end:
        return Figure("Steps", f"{step:,}")
    return Figure("Steps", f"{step:,}", f"of {end:,} ({100 * step // end} %)" if step != end else "all of them")


def _tokens(story: Story) -> Figure:
    tokens, size = story.standing.tokens, story.standing.model.get("parameters")
    if tokens is None:
        return Figure("Tokens", "")
    return Figure("Tokens", count(tokens), f"{tokens / size:.2g} per parameter" if size else "")


def _flops(story: Story) -> Figure:
    if story.flops is None or not 0 <= story.flops < math.inf:
        return Figure("Computation", "")
    estimate = "the Trainer\u2019s estimate, 6 per parameter and token"
    how = "counted from the shapes of the model" if story.exact else estimate
    return Figure("Computation", f"{scaled_text(story.flops)}FLOP", how)


def _parameters(story: Story) -> Figure:
    now = story.standing.model
    first: Mapping[str, Any] = story.records[0].before if story.records else now
    if "parameters" not in now:
        return Figure("Parameters", "")
    sizes = [count(facts["parameters"]) for facts in (first, now) if "parameters" in facts]
    shapes = [shape_text(facts).replace(" x ", " \u00d7 ") for facts in (first, now)]
    return Figure("Parameters", _change(sizes), _change(shapes))


def _change(texts: list[str]) -> str:
    return f" {ARROW} ".join(dict.fromkeys(texts))


def _time(story: Story) -> Figure:
    seconds = story.standing.seconds
    if seconds is None:
        return Figure("Training time", "")
    if story.standing.state == RUNNING and story.standing.left is not None:
        return Figure("Training time", duration(seconds), f"about {duration(story.standing.left)} left")
    ended = str((story.standing.ended or {}).get("time") or "")[:16].replace("T", " ")
    return Figure("Training time", duration(seconds), f"ended {ended} UTC" if ended else "")


def _speed(story: Story) -> Figure:
    tokens, seconds, step = story.standing.tokens, story.standing.seconds, story.standing.step
    if not seconds or not step:
        return Figure("Tokens per second", "")
    per_step = f"{duration(seconds / step)} per step"
    if not tokens:
        return Figure("Time per step", per_step.removesuffix(" per step"))
    return Figure("Tokens per second", count(float(f"{tokens / seconds:.3g}")), f"{per_step}, all included")


def _memory(story: Story) -> Figure:
    for key, what in (("memory/device_peak_gib", "of the device"), ("memory/process_gib", "of the process")):
        if values := [value for _, value in story.points(key) if math.isfinite(value)]:
            return Figure("Peak memory", f"{max(values):.3g} GiB", f"{what}, as logged")
    return Figure("Peak memory", "")


def _operations(story: Story) -> Figure:
    found = story.standing
    if not (found.operations or found.undone or found.next):
        return Figure("Operations", "0", "no schedule, or none was due")
    undone = f"{found.undone} undone by guards" if found.undone else ""
    waits = "more are to come" if found.next and found.state == RUNNING else "more were planned" if found.next else ""
    return Figure("Operations", str(found.operations), ", ".join(part for part in (undone, waits) if part))


def loading(story: Story) -> str:
    """Python that loads the model that the run has saved; empty if it has saved none."""
    if not story.standing.result:
        return ""
    place = json.dumps(f"{story.path}/{story.standing.result}", ensure_ascii=False)
    lines = ["from transformers import AutoModelForCausalLM" + (", AutoTokenizer" if story.tokenizer else ""), ""]
    lines.append(f"model = AutoModelForCausalLM.from_pretrained({place})")
    if story.tokenizer:
        lines.append(f"tokenizer = AutoTokenizer.from_pretrained({place})")
    return "\n".join(lines)


def started_with(story: Story) -> str:
    """The command line; empty if it is not known."""
    words = story.setup.get("command")
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        return ""
    return shlex.join(words)


def versions(story: Story) -> list[tuple[str, str]]:
    """(package, version), device and processes."""
    told = story.setup.get("versions")
    found = [(str(name), str(number)) for name, number in list(told.items())[:20]] if isinstance(told, Mapping) else []
    if device := story.setup.get("device"):
        several = f" \u00d7 {story.processes}" if story.processes > 1 else ""
        found.append(("device", f"{device}{several}"))
    return found
