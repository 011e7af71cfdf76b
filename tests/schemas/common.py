"""What the schemas accept beside what the readers accept, and values to try both on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from morphing_trainer.errors import MorphError, ScheduleError
from morphing_trainer.plans import load_plan
from morphing_trainer.reporting.reference_texts import CONDITION_EXAMPLES
from morphing_trainer.schedule import Schedule
from morphing_trainer.schemas import FILES
from tests.reliability.mutations import VALUES

ROOT = Path(__file__).parents[2]
SCHEMAS = {kind: json.loads(file.read_text(encoding="utf-8")) for kind, file in FILES.items()}
VALID = {kind: Draft202012Validator(schema) for kind, schema in SCHEMAS.items()}

CHANGE = {"name": "change_lr", "value": 0.5}
TIMED = {**CHANGE, "max_wait_iters": 1}
STAGE = {"dataset": "demo", "steps": 5}

CANNOT_SAY: dict[str, Any] = {
    # JSON has no such numbers, and of a number that is none (NaN) no limit can be told to be broken
    r"is (nan|inf)\b": [{**TIMED, "value": float("inf")}],
    r"must be .*, is nan": [{**CHANGE, "trigger_loss": float("nan")}],
    # what one part of a text says of another
    r"the range runs backwards": [{"name": "freeze_layer", "value": "attn.3-1", "max_wait_iters": 1}],
    # order and sums
    r"must be the last item of the list": [{**TIMED, "repeat": "end"}, TIMED],
    r"makes more than 10,000 operations": [{**TIMED, "repeat": 20_000}],
    r"in the schedule of a stage before never comes to an end": {
        "a": {**STAGE, "schedule": [{**TIMED, "repeat": "end"}]},
        "b": {**STAGE, "schedule": [TIMED]},
    },
    # what an entry makes of the defaults
    r"has no trigger": {"defaults": {"when": {"waited": 3}}, "operations": [{**CHANGE, "trigger_loss": None}]},
    r"stands beside trigger_loss": {
        "defaults": {"max_wait_iters": 3, "when": {"waited": 3}},
        "operations": [CHANGE],
    },
    # another file
    r"there is no such file|not a regular file|cannot be opened|the file is empty": {
        "a": {**STAGE, "schedule": "nowhere.yaml"}
    },
}
"""What readers refuse though the schemas accept it: message -> an example."""

OF_DEFAULTS = ("has no trigger", "stands beside trigger_loss")
"""Those of them that it can say where there are no defaults."""


def kind_of(data: Any) -> str:
    return "plan" if isinstance(data, dict) and "operations" not in data else "schedule"


def refusals(kind: str, path: Path) -> list[str]:
    """What the reader says against a file."""
    try:
        if kind == "schedule":
            Schedule.load(path)
        else:
            load_plan(str(path))
    except ScheduleError as error:
        return [problem.what for problem in error.problems]
    except MorphError as error:
        return str(error).splitlines()
    return []


def told(data: Any) -> list[str]:
    """What the reader says against a schedule."""
    try:
        Schedule.of(data)
    except ScheduleError as error:
        return [problem.what for problem in error.problems]
    return []


def agree(accepts: bool, problems: list[str], shown: Any) -> None:
    if not problems:
        assert accepts, f"read, but refused by the schema: {str(shown)[:500]}"
    elif accepts:
        known = [message for message in CANNOT_SAY if message not in OF_DEFAULTS or "'defaults'" in str(shown)]
        unsaid = [what for what in problems if not any(re.search(message, what) for message in known)]
        assert not unsaid, f"accepted by the schema, but: {unsaid[:3]}: {str(shown)[:500]}"


def part(name: str, kind: str = "schedule") -> Draft202012Validator:
    """The schema of a part, by itself."""
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": SCHEMAS[kind]["$defs"]})


def values() -> Iterator[Any]:
    """Of all kinds, and near the limits; none that is large."""
    yield from (value for value in VALUES if len(str(value)) < 400)
    yield from (1.0, 8, 8.0, 82, 100.5, 101, 0.999, "copy", "identity", "interleave", "even", "newborn", "merge")
    yield from (["attn.0"], ["wte", "nothing"], "nothing.0", "attn", "attn.", "attn.0-3", "attn.3-1", "attn.x", "a*.1")
    yield from (["attn.2", 16.0], ["attn.2", 1.5], ["ln_f", 4], ["a*.1", 4], ["attn.2", True], ["attn.2", 4, 4])
    yield from ([0.0, 1], [0, 0.5], [0, True], [0, -1], {"target_vram_percent": 0}, {"max_batch_size": 8.0})
    yield from ({"max_batch_size": 7}, {"max_batch_size": 16, "x": 1}, {"target_vram_percent": 100.0})
    yield from ({"max_loss_increase": 0, "within_steps": 1}, {"max_loss_increase": 0, "within_steps": 0})
    yield from ({"max_loss_increase": 0.1, "within_steps": 1e3, "otherwise": "stop"}, {"within_steps": 5})
    yield from ({"max_loss_increase": 0.1, "within_steps": 5, "otherwise": "x"}, {"a": 1, "b": 2}, {"waited": 1.0})
    guard = {"max_loss_increase": 0.1, "within_steps": 5}
    yield from ({**guard, "x": 1}, {**guard, "otherwise": 3}, {**guard, "max_loss_increase": -1})
    yield from ({**guard, "max_loss_increase": "x"}, {**guard, "within_steps": "5"}, {"target_vram_percent": "x"})
    yield from ({"target_vram_percent": 101}, {"max_batch_size": "16"}, {"unknown": 3}, {"all": "x"}, {"any": {}})
    yield from ({"loss_below": -1}, {"loss_below": "3"}, {"waited": -1}, {"waited": "1"}, {"waited": 1.5})
    yield from ({"at_step": -1}, {"at_step": "1"}, {"at_tokens": "5"}, {"rank_use_above": -0.1})
    yield from ({"rank_use_above": "x"}, {"plateau": 3}, {"plateau": {"window": "5"}}, {"stage": ""}, {"stage": 3})
    yield from ({"plateau": {"window": 2, key: value}} for key, value in (("slope", -1), ("slope", "x"), ("x", 1)))
    yield from ({"stage": {"name": 3}}, {"stage": []}, {"plateau": []})
    yield from CONDITION_EXAMPLES.values()
    yield from ({"stage": {"name": ""}}, {"stage": {"then": {"waited": 1}}}, {"stage": {"name": "a", "x": 1}})
    yield from ({"plateau": {"window": 1}}, {"plateau": {"window": 2.0}}, {"plateau": {}}, {"all": []}, {"all": [3]})
    yield from ({"rank_use_above": 1}, {"rank_use_above": 0}, {"at_tokens": 0}, {"any": [{"any": [{"waited": 0}]}]})
    yield from ({"stage": {"name": "a", "then": None}}, {"at_step": 1, "waited": 2}, {"loss_below": float("inf")})
