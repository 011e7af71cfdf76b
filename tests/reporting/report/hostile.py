"""A run every text of which would like to be something else, and every number of which is none a run has."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from morphing_trainer.reporting.journal import Change
from morphing_trainer.reporting.records import Record
from morphing_trainer.reporting.report.story import Story
from morphing_trainer.run.standing import FAILED, Standing
from tests.reporting.report.support import SPEC, story

EVIL = "</script></style></title><script>window.pwned=1</script><img src=x onerror='pwned=1'>\"'`{{7*7}}{%x%}&lt;"
NASTY = [
    EVIL,
    "a\x00b\x1b[31mc\ud800d\uffff\u202eevil\u2066",
    "javascript:window.pwned=1",
    "--><!--<![CDATA[",
    "<" * 2000,
    "W" * 100_000,
    "\n" * 5000,
    "مرحبا بالعالم <b>שלום</b>",
    "",
]


def hostile(record: Callable[..., Record]) -> Story:
    """Built where a file could have said it."""
    standing = Standing(EVIL, state=FAILED, step=200, end=200, faults=[EVIL], advice=[EVIL])
    standing.ended = {"event": "failed", "step": 200, "error": EVIL, "time": EVIL}
    standing.model = {"parameters": 10**18, "layers": 3}
    spec = {**SPEC, "frozen": [EVIL], "adapter": {"target_modules": [EVIL], "r": 3}}
    one = replace(record(2, 50), operation=EVIL, value={EVIL: EVIL}, desc=EVIL, trigger=EVIL, note=EVIL, warning=EVIL)
    two = record(3, 100, before={"layers": -5, "hidden": 1e308, "parameters": math.inf}, after={"parameters": math.nan})
    undone = {"event": "rolled_back", "step": 100, "index": 2, "operation": EVIL, "reason": EVIL}
    start = {"event": "start", "step": 0, "time": EVIL, "spec": spec, "seed": EVIL}
    start["schedule"] = [{"name": EVIL, "value": NASTY, "when": {EVIL: EVIL}, EVIL: EVIL}, {"repeat": EVIL}, 3, None]
    events: list[dict[str, Any]] = [start, {"event": EVIL, "step": 3, "time": EVIL, EVIL: NASTY}]
    lines = [{"step": 10, "loss": math.nan, "eval_loss": math.inf, "stage": EVIL, "tokens": 5, "seconds": 0.0}]
    lines += [{"step": 20 + step, "loss": 1e308 * (-1) ** step, f"eval_{EVIL}_loss": -1e308} for step in range(180)]
    examples = [
        {"step": step, "name": text, "prompt": text, "truth": text, "prediction": text}
        for step, text in enumerate(NASTY)
    ]
    return story(
        name=EVIL,
        path=EVIL,
        standing=replace(standing, result="model"),
        lines=lines,
        records=[one, two],
        changes=[Change(one, EVIL), Change(two, EVIL, undone=undone)],
        events=events,
        stages={EVIL: 0.0, "W" * 3000: 90.0},
        timing={EVIL: 1.0, "": 1e11},
        setup={
            "command": ["train.py", EVIL],
            "versions": {EVIL: EVIL},
            "device": EVIL,
            "processes": 2,
            "arguments": {EVIL: {EVIL: EVIL}, "x": 3},
            "changed": {EVIL: [EVIL]},
        },
        examples=examples,
        flops=1e300,
        tokenizer=True,
        faults=[EVIL] * 3,
    )
