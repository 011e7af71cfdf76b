"""How much computing a run has done: exactly, by the models that its journal tells of and the tokens that each saw."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from morphing_trainer.errors import ConfigError
from morphing_trainer.flops import flops_per_token
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.reporting.run_data import AXES, RunData, is_number
from morphing_trainer.run.journal import Event
from morphing_trainer.run.stretches import Stretch, spent


def stretches(events: Sequence[Event], length: int) -> list[Stretch]:
    """What a token has cost, from operation to operation.

    Args:
        events: those that led to the run as it is.
        length: tokens of a sample.

    Raises:
        ConfigError: if they do not tell what the model was.
    """
    begin = next((event for event in events if event["event"] == "start"), None)
    if begin is None:
        raise ConfigError("its journal does not tell what model it began with")
    found = [Stretch(0.0, _cost(begin, length))]
    for event in events:
        if event["event"] == "operation":
            found.append(Stretch(float(event["record"]["tokens"]), _cost(event, length)))
    return found


def _cost(event: Mapping[str, Any], length: int) -> float:
    try:
        return _counted(json.dumps(event["spec"], sort_keys=True), length)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"its journal does not tell what model it had at step {event['step']} ({error})") from error


@lru_cache(maxsize=1024)
def _counted(spec: str, length: int) -> float:
    """A run asks for all its models again after each operation; to count takes milliseconds."""
    return flops_per_token(ModelSpec.from_dict(json.loads(spec)), length)


def with_flops(run: RunData, stretches: Sequence[Stretch]) -> RunData:
    """The run with exact floating-point operations in its log lines, in the place of the Trainer's estimate."""
    key = AXES["flops"].key
    lines = [
        {**line, key: spent(float(line["tokens"]), stretches)} if is_number(line.get("tokens")) else _without(line, key)
        for line in run.lines
    ]
    return replace(run, lines=lines)


def without_flops(run: RunData) -> RunData:
    """The run with no figures of it."""
    return replace(run, lines=[_without(line, AXES["flops"].key) for line in run.lines])


def _without(line: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name != key}
