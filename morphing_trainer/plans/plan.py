"""A training plan: read from YAML or JSON, every problem told with its line; then opened, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from morphing_trainer.documents import SUFFIXES, Document, DocumentError, load_document
from morphing_trainer.errors import ConfigError, Problem, ScheduleError, listed, suggest
from morphing_trainer.operations.stages import AdvanceStage
from morphing_trainer.plans.fields import Part, StageFields
from morphing_trainer.run.length import Length
from morphing_trainer.schedule import Schedule
from morphing_trainer.schedule_entry import Entry, Source
from morphing_trainer.schedule_fields import Fault, described, validated
from morphing_trainer.triggers import InStage, stages_named

BUILT_IN = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
"""Plans that come with the library, by name."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage as it stands in a plan."""

    name: str
    fields: StageFields

    @property
    def length(self) -> Length:
        fields = self.fields
        if fields.epochs is not None:
            return Length("epochs", fields.epochs)
        return Length("steps", fields.steps) if fields.steps is not None else Length("tokens", fields.tokens or 0)


@dataclass(frozen=True)
class Plan:
    """The stages of a plan, and their schedules as one: each operation bound to its stage.

    Attributes:
        source: the file it was read from.
    """

    source: str
    stages: tuple[PlannedStage, ...]
    schedule: Schedule


def load_plan(name: str) -> Plan:
    """Read a plan: a file, or one of the built-in plans by its name.

    Raises:
        ConfigError: listing every problem of the file with its line.
        ScheduleError: listing those of its schedules.
        DocumentError: if the file cannot be read at all.
    """
    path = Path(name)
    if not path.exists() and path.suffix.lower() not in SUFFIXES:
        if name not in BUILT_IN:
            raise ConfigError(f"plan: {name!r} is no file and no built-in plan{suggest(name, BUILT_IN)}")
        path = BUILT_IN[name]
    document = load_document(path)
    source = Source(str(name), document.lines)
    stages, problems = _read_stages(document, source)
    try:
        schedule = _joined(stages, source)
        if not problems:  # a stage with faults is not among them
            check_stages(schedule, [stage.name for stage in stages])
    except ScheduleError as error:
        if not problems:
            raise
        problems += error.problems
    if problems:
        raise ConfigError(listed(problems))
    return Plan(str(name), tuple(stages), schedule)


def _read_stages(document: Document, source: Source) -> tuple[list[PlannedStage], list[Problem]]:
    problems = list(document.problems)
    if not isinstance(document.data, Mapping) or not document.data:
        what = "a plan is a mapping `stage: {dataset: ..., epochs: ...}`, in the order of training; this is "
        return [], [*problems, Problem(source.where(()), what + described(document.data))]
    stages = []
    for name, data in document.data.items():
        if not isinstance(data, Mapping):
            what = f"must be a mapping such as {{dataset: demo, epochs: 1}}, is {described(data)}"
            problems.append(Problem(source.where((name,), f"stage {name}"), what))
            continue
        fields, faults = _read_fields(data)
        for path, what in faults:
            labels = [".".join(str(part) for part in path)] if path else []
            problems.append(Problem(source.where((name, *path), f"stage {name}", *labels), what))
        if fields is not None:
            stages.append(PlannedStage(str(name), fields))
    return stages, problems


def _read_fields(data: Mapping[str, Any]) -> tuple[StageFields | None, list[Fault]]:
    """The fields of a stage; those of a mix one by one, so that each fault has its place."""
    mix, faults = data.get("mix"), list[Fault]()
    if isinstance(mix, list):
        for number, part in enumerate(mix):
            if not isinstance(part, Mapping):
                what = f"must be a mapping such as {{dataset: demo, weight: 1}}, is {described(part)}"
                faults.append((("mix", number), what))
                continue
            _, found = validated(Part, dict(part))
            faults += [(("mix", number, *path), what) for path, what in found]
    # A mix with faults has been told of; what else the stage says is looked at without it.
    fields, found = validated(StageFields, {**data, "mix": [{"dataset": "-"}]} if faults else dict(data))
    return (None if faults else fields), [*faults, *found]


def _joined(stages: Sequence[PlannedStage], source: Source) -> Schedule:
    """The schedules of all stages, one after the other, each operation waiting for its stage.

    Raises:
        ScheduleError: with the problems of all of them.
    """
    entries: list[Entry] = []
    cycle: tuple[Entry, ...] = ()
    problems: list[Problem] = []
    for stage in stages:
        if stage.fields.schedule is None:
            continue
        if cycle:
            what = "repeat: end in the schedule of a stage before never comes to an end; give a number of times there"
            problems.append(Problem(source.where((stage.name, "schedule"), f"stage {stage.name}", "schedule"), what))
        try:
            own = _schedule_of(stage, source)
        except ScheduleError as error:
            problems += error.problems
            continue
        except DocumentError as error:
            where = source.where((stage.name, "schedule"), f"stage {stage.name}", "schedule")
            problems.append(Problem(where, str(error)))
            continue
        entries += [_bound(entry, stage.name, own.source) for entry in own.entries]
        cycle = tuple(_bound(entry, stage.name, own.source) for entry in own.cycle)
    if problems:
        raise ScheduleError(problems)
    return Schedule(tuple(entries), cycle, source)


def _schedule_of(stage: PlannedStage, source: Source) -> Schedule:
    given = stage.fields.schedule
    if isinstance(given, str):
        return Schedule.load(given)
    return Schedule.read(given, replace(source, base=(stage.name, "schedule")))


def _bound(entry: Entry, stage: str, source: Source) -> Entry:
    terms = entry.terms.model_copy(update={"trigger_loss": None, "max_wait_iters": None})
    return replace(entry, trigger=InStage(name=stage, then=entry.trigger), terms=terms, when=True, source=source)


def check_stages(schedule: Schedule, names: Sequence[str]) -> None:
    """Refuse a schedule that speaks of stages which the run does not have.

    Args:
        names: of its stages; a run without a plan has one.

    Raises:
        ScheduleError: naming each.
    """
    problems = []
    for index, entry in schedule.written():
        named = [("when", name) for name in stages_named(entry.trigger)]
        if isinstance(entry.operation, AdvanceStage) and entry.operation.value is not None:
            named.append(("value", entry.operation.value))
        for field, name in named:
            if name not in names:
                hint = suggest(name, names) if len(names) > 1 else "; this run has no training plan"
                problems.append(Problem(schedule.where(index, field), f"there is no stage {name!r}{hint}"))
    if problems:
        raise ScheduleError(problems)


def check_alone(plan: Plan, schedule_file: Any) -> None:
    """Refuse a schedule beside a plan that has schedules of its own.

    Raises:
        ConfigError: naming both.
    """
    if schedule_file is not None and len(plan.schedule):
        raise ConfigError(
            f"scaling_schedule_file: {schedule_file} stands beside plan {plan.source}, whose stages have schedules of "
            "their own. Keep one: operations of a schedule file can be bound to stages by `when: {stage: ...}`."
        )


__all__ = ["Plan", "PlannedStage", "check_alone", "check_stages", "load_plan"]
