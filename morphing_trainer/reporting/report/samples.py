"""What the model wrote, over the run: the examples of its evaluations, of each prompt one under the other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from morphing_trainer.reporting.report.story import Facts, Story
from morphing_trainer.reporting.report.text import cut, el, joined

MOST_SHOWN, MOST_PROMPTS = 12, 8
MOST_TEXT, MOST_PROMPT = 1200, 700
"""Characters."""
_ENDS = re.compile(r"\n+")


@dataclass(frozen=True)
class Written:
    """What continued one prompt. `shown`: (step, text) of some of the `many` examples, the first and the last too."""

    name: str
    prompt: str
    truth: str
    shown: Sequence[tuple[int, Markup]]
    many: int
    first: int
    last: int


def samples(story: Story) -> tuple[list[Written], int]:
    """One for each prompt, in the order in which they came up; and how many prompts are left out."""
    groups: dict[tuple[str, str, str], list[Facts]] = {}
    for example in story.examples:
        groups.setdefault((example["name"], example["prompt"], example["truth"]), []).append(example)
    found = [_written(key, examples) for key, examples in list(groups.items())[:MOST_PROMPTS]]
    return found, max(0, len(groups) - MOST_PROMPTS)


def _written(key: tuple[str, str, str], examples: Sequence[Facts]) -> Written:
    name, prompt, truth = key
    chosen = [examples[number] for number in spread(len(examples), MOST_SHOWN)]
    shown = [(example["step"], prediction(example["prediction"], truth)) for example in chosen]
    before = prompt if len(prompt) <= MOST_PROMPT else f"\u2026 {prompt[-MOST_PROMPT:]}"
    steps = examples[0]["step"], examples[-1]["step"]
    return Written(cut(name, 100), before, cut(truth, MOST_TEXT), shown, len(examples), *steps)


def spread(many: int, most: int) -> list[int]:
    """At most `most` of the numbers below `many`, evenly, the first and the last among them."""
    if many <= most:
        return list(range(many))
    return [round(number * (many - 1) / (most - 1)) for number in range(most)]


def prediction(text: str, truth: str) -> Markup:
    """A text on one line, the part of it with which the truth begins, too, marked."""
    text = cut(text, MOST_TEXT)
    pairs = zip(text, truth, strict=False)
    same = text[: next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(text), len(truth)))]
    if not same.strip():
        return visible(text)
    return joined([el("mark", visible(same), title="as in the truth"), visible(text[len(same) :])])


def visible(text: str) -> Markup:
    """Line ends as a sign, many of them as one with their number; nothing is not to be seen."""
    if not text.strip(" "):
        return el("i", "(nothing)" if not text else "(spaces)")
    parts: list[str | Markup] = []
    at = 0
    for found in _ENDS.finditer(text):
        many = found.end() - found.start()
        sign = "\u23ce" * many if many <= 2 else f"\u23ce\u00d7{many}"
        parts += [text[at : found.start()], el("span", sign, class_="end"), "\u200b"]
        at = found.end()
    return joined([*parts, text[at:]])
