"""Files that people write, checked by what reads them: schedules, training plans, run configs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from morphing_trainer.documents import DocumentError, load_document
from morphing_trainer.errors import MorphError, Problem, ScheduleError

Kind = Literal["schedule", "plan", "config"]

_HERE = ("--use_cpu", "--no_fp16", "--no_bf16", "--report_to", "none")
"""What needs a GPU, or a service, must not stand in the way of checking a config for one."""


@dataclass(frozen=True)
class Checked:
    """What is known of a file.

    Attributes:
        name: as it was given.
        kind: what it was read as; None if it could not be read at all.
        facts: what is in it, in words, if it is good.
        problems: what is wrong.
    """

    name: str
    kind: Kind | None
    facts: str = ""
    problems: tuple[Problem, ...] = ()

    @property
    def good(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for machines."""
        problems = [
            {"line": line_of(self.name, item), "where": item.where, "what": item.what} for item in self.problems
        ]
        return {"file": self.name, "kind": self.kind, "ok": self.good, "facts": self.facts, "problems": problems}


def line_of(name: str, problem: Problem) -> int | None:
    """The line of the file that a problem is in."""
    found = re.match(rf"{re.escape(name)}:(\d+)", problem.where)
    return int(found[1]) if found else None


def checked(name: str, kind: Kind | None = None) -> Checked:
    """A file, read as `kind` or as what it looks like."""
    try:
        kind = kind or kind_of(load_document(name).data)
        return Checked(name, kind, _READERS[kind](name))
    except MorphError as error:
        return Checked(name, kind, problems=tuple(_problems(name, error)))


def kind_of(data: Any) -> Kind:
    """What a document is meant to be: a list is a schedule, a mapping of mappings a plan, another mapping a config."""
    from morphing_trainer.plans.fields import StageFields

    if not isinstance(data, Mapping):
        return "schedule"
    if {"operations", "defaults", "name"} & data.keys() or any(_is_operations(value) for value in data.values()):
        return "schedule"
    stages = [value for value in data.values() if isinstance(value, Mapping)]
    like_stages = [value for value in stages if value.keys() & StageFields.model_fields.keys()]
    return "plan" if like_stages or (stages and len(stages) == len(data)) else "config"


def _is_operations(value: Any) -> bool:
    """A list of operations, under a key that was meant to be `operations`."""
    return isinstance(value, list) and any(isinstance(item, Mapping) and "name" in item for item in value)


def _problems(name: str, error: MorphError) -> Sequence[Problem]:
    """What an error tells of a file, one by one; what does not say where is about the file as a whole."""
    if isinstance(error, ScheduleError):
        return error.problems
    lines = str(error).splitlines() or [str(error)]
    if not all(line.startswith((f"{name}:", "... and ")) for line in lines):
        lines = [" ".join(lines)]
    return [_problem(name, line) for line in lines]


def _problem(name: str, line: str) -> Problem:
    place = re.match(rf"({re.escape(name)}(?::\d+)?): ", line)
    return Problem(place[1], line[place.end() :]) if place else Problem(name, line)


# --- Readers: what is in a file, in words; a MorphError if something is wrong ---


def _schedule(name: str) -> str:
    from morphing_trainer.schedule import Schedule

    return _operations(Schedule.load(name))


def _operations(schedule: Any) -> str:
    count = len(schedule)
    endless = f", the last {len(schedule.cycle)} again and again" if schedule.cycle else ""
    return f"{count} operation{'' if count == 1 else 's'}{endless}"


def _plan(name: str) -> str:
    from morphing_trainer.plans import load_plan

    if not os.path.exists(name):  # it would be looked up among those that come with the library
        raise DocumentError(f"{name}: there is no such file; check the path")
    plan = load_plan(name)
    count = len(plan.stages)
    return f"{count} stage{'' if count == 1 else 's'}, {_operations(plan.schedule)}"


def _config(name: str) -> str:
    """The config by itself, and the schedule and plan that it names."""
    from morphing_trainer.cli.arguments import parse
    from morphing_trainer.plans import load_plan
    from morphing_trainer.plans.plan import check_alone
    from morphing_trainer.schedule import Schedule

    arguments = parse(["--config", name, *_HERE], prog="morph validate")
    facts = []
    if (file := arguments.data.plan) is not None:
        plan = _within(name, "plan", file, load_plan)
        check_alone(plan, arguments.training.scaling_schedule_file)
        facts.append(f"plan {file} with {len(plan.stages)} stages, {_operations(plan.schedule)}")
    if (file := arguments.training.scaling_schedule_file) is not None:
        schedule = _within(name, "scaling_schedule_file", file, Schedule.load)
        facts.append(f"schedule {file} with {_operations(schedule)}")
    return "; ".join(facts)


def _within(config: str, key: str, file: str, read: Callable[[str], Any]) -> Any:
    """What a config names under `key`.

    Raises:
        ScheduleError: with the problems of that file, each located in the config, too.
    """
    try:
        return read(file)
    except MorphError as error:
        from morphing_trainer.schedule_entry import Source

        where = Source(config, load_document(config).lines).where((key,), key)
        raise ScheduleError(Problem(where, str(problem)) for problem in _problems(file, error)) from error


_READERS: Mapping[Kind, Callable[[str], str]] = {"schedule": _schedule, "plan": _plan, "config": _config}
