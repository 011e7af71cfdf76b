from __future__ import annotations

import copy
import json
import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from morphing_trainer.documents import DocumentError, dump_yaml
from morphing_trainer.errors import ScheduleError
from morphing_trainer.operations import NAMES
from morphing_trainer.schedule import Position, Schedule, ahead
from morphing_trainer.schedule_reader import MOST_OPERATIONS
from morphing_trainer.triggers import AllOf, AnyOf, AtStep, AtTokens, Clock, LossBelow, Plateau, Waited

PLAIN_YAML = """\
- name: change_lr          # operation
  value: 2.0               # its argument; null where it takes none
  trigger_loss: 6.0        # fires when the evaluation loss is < this
  max_wait_iters: 50000    # or this many optimizer steps after the previous operation (or the start)
  reevaluate: false        # evaluate again right after, and log the new loss
  desc: optional free text
- name: reset_lr_schedule
  value: null
  trigger_loss: .inf
  max_wait_iters: 1e3
- {name: stack_layers, value: [0, 0, 1, 1], init: identity, trigger_loss: 4, max_wait_iters: 0, reevaluate: true}
- {name: set_warmup_iters, value: 0, trigger_loss: 0}
"""
PLAIN_JSON = """\
[
  {"name": "change_lr", "value": 2.0, "trigger_loss": 6.0, "max_wait_iters": 50000, "reevaluate": false,
   "desc": "optional free text"},
  {"name": "reset_lr_schedule", "value": null, "trigger_loss": Infinity, "max_wait_iters": 1000.0},
  {"name": "stack_layers", "value": [0, 0, 1, 1], "init": "identity", "trigger_loss": 4, "max_wait_iters": 0,
   "reevaluate": true},
  {"name": "set_warmup_iters", "value": 0, "trigger_loss": 0}
]
"""
TICK = Clock(step=0, epoch=0.0, tokens=0, train_seconds=0.0, waited=0)


def write(folder: Path, text: str, name: str = "s.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def lines(folder: Path, text: str, name: str = "s.yaml") -> list[str]:
    """The problems of a refused file, without its folder."""
    with pytest.raises(ScheduleError) as caught:
        Schedule.load(write(folder, text, name))
    assert len(str(caught.value).splitlines()) == len(caught.value.problems)
    return [str(problem).replace(f"{folder}/", "") for problem in caught.value.problems]


def refused(**entry: Any) -> list[str]:
    """The problems of one entry given as data."""
    with pytest.raises(ScheduleError) as caught:
        Schedule.of([{"max_wait_iters": 1, **entry} if "when" not in entry else entry])
    return [str(problem) for problem in caught.value.problems]


# --- What loads ---


@pytest.mark.parametrize(("name", "text"), [("s.yaml", PLAIN_YAML), ("s.json", PLAIN_JSON)])
def test_the_plain_form(tmp_path: Path, name: str, text: str) -> None:
    schedule = Schedule.load(write(tmp_path, text, name))
    first, second, third, fourth = schedule.entries
    assert (first.operation.name, first.operation.value, first.desc, first.reevaluate) == (
        "change_lr",
        2.0,
        "optional free text",
        False,
    )
    assert first.trigger == AnyOf(parts=(LossBelow(value=6.0), Waited(value=50000)))
    assert second.operation.value is None
    assert second.trigger == AnyOf(parts=(LossBelow(value=math.inf), Waited(value=1000)))
    assert third.operation.to_dict() == {"name": "stack_layers", "value": [0, 0, 1, 1], "init": "identity"}
    assert third.reevaluate
    assert fourth.trigger == LossBelow(value=0)
    assert not any(entry.completed or entry.when for entry in schedule.entries)


def test_yaml_and_json_are_the_same_schedule(tmp_path: Path) -> None:
    left, right = write(tmp_path, PLAIN_YAML), write(tmp_path, PLAIN_JSON, "s.json")
    assert Schedule.load(left) == Schedule.load(right) == Schedule.of(left) == Schedule.of(str(right))
    assert Schedule.load(left).digest == Schedule.load(right).digest


def test_whole_numbers_and_fractions_are_one_value() -> None:
    left, right = ([{"name": "stack_layers", "value": value, "max_wait_iters": 1}] for value in (2, 2.0))
    assert Schedule.of(left) == Schedule.of(right)
    assert Schedule.of(left).digest == Schedule.of(right).digest


def test_an_alias_is_the_operation_it_stands_for() -> None:
    alias = Schedule.of([{"name": "increase_hidden_dim", "value": 2, "max_wait_iters": 1}])
    assert alias == Schedule.of([{"name": "widen_mlp", "value": 2, "max_wait_iters": 1}])
    assert alias.to_list()[0]["name"] == "widen_mlp"


def test_nothing_is_an_empty_schedule(tmp_path: Path) -> None:
    for empty in (None, [], {"operations": []}, {"operations": None}, write(tmp_path, "[]\n")):
        assert len(Schedule.of(empty)) == 0
    assert Schedule.of(Schedule()) == Schedule()


def test_the_mapping_form_with_defaults(tmp_path: Path) -> None:
    text = """\
defaults: {trigger_loss: 3.0, max_wait_iters: 7, reevaluate: true}
operations:
- {name: change_lr, value: 2}
- {name: change_lr, value: 2, max_wait_iters: 9, reevaluate: false}
- {name: change_lr, value: 2, when: {at_step: 5}}
"""
    entries = Schedule.load(write(tmp_path, text)).entries
    both = AnyOf(parts=(LossBelow(value=3.0), Waited(value=7)))
    assert [entry.trigger for entry in entries] == [
        both,
        AnyOf(parts=(LossBelow(value=3.0), Waited(value=9))),
        AtStep(value=5),
    ]
    assert [entry.reevaluate for entry in entries] == [True, False, True]


def test_a_default_when_gives_way_to_the_entry() -> None:
    operations = [
        {"name": "change_lr", "value": 2},
        {"name": "change_lr", "value": 2, "max_wait_iters": 4},
        {"name": "change_lr", "value": 2, "when": {"at_tokens": 10}},
    ]
    entries = Schedule.of({"defaults": {"when": {"at_step": 9}}, "operations": operations}).entries
    assert [entry.trigger for entry in entries] == [AtStep(value=9), Waited(value=4), AtTokens(value=10)]
    with pytest.raises(ScheduleError, match="unknown key 'desc'"):
        Schedule.of({"defaults": {"desc": "x"}, "operations": operations})


def test_when_with_every_condition_nested() -> None:
    when = {
        "all": [
            {"waited": 5},
            {
                "any": [
                    {"loss_below": 2.5},
                    {"at_step": 100},
                    {"all": [{"at_tokens": 1e6}, {"plateau": {"window": 3, "slope": 0.1}}]},
                    {"plateau": {"window": 2}},
                ]
            },
        ]
    }
    (entry,) = Schedule.of([{"name": "change_lr", "value": 2, "when": when}]).entries
    inner = AllOf(parts=(AtTokens(value=1_000_000), Plateau(window=3, slope=0.1)))
    either = AnyOf(parts=(LossBelow(value=2.5), AtStep(value=100), inner, Plateau(window=2, slope=0.0)))
    assert entry.trigger == AllOf(parts=(Waited(value=5), either))
    assert Schedule.of([entry.to_dict()]).entries == (entry,)


def test_completed_entries_are_stepped_over() -> None:
    def entry(completed: bool) -> dict[str, Any]:
        return {"name": "change_lr", "value": 2, "max_wait_iters": 0, "completed": completed}

    schedule = Schedule.of([entry(done) for done in (True, True, False, True, False, True)])
    position = Position().settle(schedule)
    assert (position.done, position.since) == (2, 0)
    assert position.ask(schedule, TICK) is not None
    position = position.applied(schedule, step=8)
    assert (position.done, position.since) == (4, 8)
    position = position.applied(schedule, step=9)
    assert position.upcoming(schedule) is None
    assert position.ask(schedule, TICK) is None


# --- What is refused ---


def test_every_problem_at_once_with_file_line_entry_and_field(tmp_path: Path) -> None:
    text = """\
- name: change_lrr
  value: 2
- name: change_lr
  valu: 2
  trigger_loss: -1
  max_wait_iters: 1.5
- 5
- name: stack_layers
  value: 2
  init: identiy
  when:
    any:
      - at_stp: 5
      - plateau: {window: 1}
- name: set_batch_size
  value: 8
- name: widen_mlp
  value: 2
  value: 3
  max_wait_iters: 1
"""
    assert lines(tmp_path, text) == [
        "s.yaml:19: the key 'value' was already given in line 18; keep one of them",
        "s.yaml:1: entry 1, name: unknown operation 'change_lrr'; did you mean 'change_lr'?",
        "s.yaml:4: entry 2 (change_lr), valu: unknown key 'valu'; did you mean 'value'?",
        "s.yaml:3: entry 2 (change_lr), value: is missing",
        "s.yaml:5: entry 2 (change_lr), trigger_loss: must be greater than or equal to 0, is -1",
        "s.yaml:6: entry 2 (change_lr), max_wait_iters: must be a valid integer, is 1.5",
        "s.yaml:7: entry 3: must be a mapping with 'name' and 'value', is 5 (int)",
        "s.yaml:10: entry 4 (stack_layers), init: must be 'copy' or 'identity', is 'identiy'",
        "s.yaml:13: entry 4 (stack_layers), when.any.0.at_stp: unknown condition 'at_stp'; did you mean 'at_step'?",
        "s.yaml:14: entry 4 (stack_layers), when.any.1.plateau.window: must be greater than or equal to 2, is 1",
        "s.yaml:15: entry 5 (set_batch_size): has no trigger; give trigger_loss or max_wait_iters or both, "
        "or when: {...}",
    ]


def test_the_same_in_json(tmp_path: Path) -> None:
    text = '[\n {"name": "change_lr",\n  "value": "2",\n  "max_wait_iters": 1, "max_wait_iters": 2}\n]\n'
    assert lines(tmp_path, text, "s.json") == [
        "s.json:4: the key 'max_wait_iters' was already given in line 4; keep one of them",
        "s.json:3: entry 1 (change_lr), value: must be a valid number, is '2'",
    ]


def test_problems_under_a_mapping_are_located(tmp_path: Path) -> None:
    text = "operation: []\ndefaults:\n  max_wait: 3\noperations:\n- name: change_lr\n  value: 0\n  max_wait_iters: 1\n"
    assert lines(tmp_path, text) == [
        "s.yaml:1: unknown key 'operation'; did you mean 'operations'?",
        "s.yaml:3: defaults: unknown key 'max_wait'; did you mean 'max_wait_iters'?",
        "s.yaml:6: entry 1 (change_lr), value: must be a positive, finite number, is 0.0",
    ]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"name": "change_lr", "value": True}, "value: must be a valid number, is True"),
        ({"name": "change_lr", "value": -2}, "value: must be a positive, finite number, is -2.0"),
        ({"name": "change_lr", "value": math.nan}, "value: must be a positive, finite number, is nan"),
        ({"name": "change_lr", "value": math.inf}, "value: must be a positive, finite number, is inf"),
        ({"name": "set_batch_size", "value": 2.5}, "value: must be a valid integer, is 2.5"),
        ({"name": "set_batch_size", "value": 0}, "value: must be greater than or equal to 1, is 0"),
        ({"name": "set_batch_size_relative", "value": 1.5}, "value: must be less than or equal to 1, is 1.5"),
        ({"name": "reset_lr_schedule", "value": 3}, "value: must be null, is 3"),
        ({"name": "stack_layers", "value": 1}, "value: must be a finite factor above 1, is 1.0"),
        ({"name": "stack_layers", "value": [0]}, "value: must have at least 2 items, has 1"),
        ({"name": "stack_layers", "value": [0, 1.5]}, "value.1: must be a valid integer, is 1.5"),
        (
            {"name": "stack_layers", "value": "x"},
            "value: must be a valid number, is 'x' or must be a valid list, is 'x'",
        ),
        ({"name": "widen_mlp", "value": 2, "noise": -1}, "noise: must be greater than or equal to 0, is -1"),
        ({"name": "freeze_layer", "value": "atn.0"}, "value: 'atn.0' names no component; did you mean 'attn'?"),
        ({"name": "freeze_layer", "value": []}, "value: must name at least one component, such as attn.0"),
        (
            {"name": "freeze_layer", "value": "attn.3-1"},
            "value: 'attn.3-1': the range runs backwards; write attn.1-3",
        ),
        ({"name": "change_lr", "value": 2, "trigger_loss": math.nan}, "trigger_loss: must be greater than"),
        ({"name": "change_lr", "value": 2, "max_wait_iters": math.inf}, "max_wait_iters: must be a valid integer"),
        ({"name": "change_lr", "value": 2, "reevaluate": "yes"}, "reevaluate: must be a valid boolean, is 'yes'"),
        ({"name": "change_lr", "value": 2, "completed": 1}, "completed: must be a valid boolean, is 1"),
        ({"name": "change_lr", "value": 2, "desc": 3}, "desc: must be a valid string, is 3"),
        ({"name": "change_lr", "value": 2, "init": "copy"}, "init: unknown key 'init'"),
    ],
)
def test_bad_values(entry: dict[str, Any], problem: str) -> None:
    (found,) = refused(**entry)
    assert found.startswith(f"schedule: entry 1 ({entry['name']}), {problem}")


@pytest.mark.parametrize(
    ("when", "problem"),
    [
        (None, "when: must be one condition such as {at_step: 500}, is empty"),
        ({}, "when: must be one condition such as {at_step: 500}, is {}"),
        ([{"at_step": 1}], "when: must be one condition"),
        ({"at_step": 1, "waited": 2}, "a mapping with several keys; join them with 'all: [...]' or 'any: [...]'"),
        ({"all": []}, "when.all: must be a list of conditions"),
        ({"all": {"at_step": 1}}, "when.all: must be a list of conditions"),
        ({"any": [{"waited": 1}, 5]}, "when.any.1: must be one condition"),
        ({"loss_below": math.nan}, "when.loss_below: must be greater than or equal to 0, is nan"),
        ({"at_tokens": 0}, "when.at_tokens: must be greater than or equal to 1, is 0"),
        ({"plateau": 5}, "when.plateau: must be a mapping such as {window: 5, slope: 0.05}, is 5"),
        ({"stage": 3}, "when.stage: must be the name of a stage, or {name: ..., then: {...}}, is 3 (int)"),
        ({"stage": ""}, "when.stage: must be the name of a stage, or {name: ..., then: {...}}, is '' (str)"),
        ({"stage": {"then": {"waited": 1}}}, "when.stage.name: must be the name of a stage, is empty"),
        ({"stage": {"name": "a", "than": 1}}, "when.stage.than: unknown key 'than'; did you mean 'then'?"),
        (
            {"stage": {"name": "a", "then": {"waited": -1}}},
            "when.stage.then.waited: must be greater than or equal to 0",
        ),
        ({"plateau": {"slope": 1}}, "when.plateau.window: is missing"),
        ({"plateau": {"window": 3, "slop": 1}}, "when.plateau.slop: unknown key 'slop'; did you mean 'slope'?"),
        ({"plateau": {"window": 3, 1: 2}}, "when.plateau.1: a key must be text"),
        ({"loss": 1}, "unknown condition 'loss'"),
    ],
)
def test_bad_conditions(when: Any, problem: str) -> None:
    (found,) = refused(name="change_lr", value=2, when=when)
    assert problem in found


def test_a_trigger_is_given_once() -> None:
    both = "when: stands beside trigger_loss or max_wait_iters; give one or the other"
    for plain in ({"trigger_loss": 3}, {"max_wait_iters": 3}):
        assert both in refused(name="change_lr", value=2, when={"at_step": 1}, **plain)[0]
    assert "has no trigger" in refused(name="change_lr", value=2, max_wait_iters=None)[0]


def test_a_missing_name_lists_the_operations() -> None:
    for entry in ({"value": 2}, {"value": 2, "max_wait_iters": 3, "init": "identity"}, {"name": None, "value": 2}):
        (found,) = refused(**entry)
        assert "has no 'name'" in found and all(name in found for name in NAMES)


def test_a_misspelt_name_is_told_as_such(tmp_path: Path) -> None:
    text = "- nam: widen_mlp\n  value: 2\n- repeat: 2\n  operations:\n  - value: 2\n    nmae: widen_mlp\n"
    assert lines(tmp_path, text) == [
        "s.yaml:1: entry 1, nam: unknown key 'nam'; did you mean 'name'?",
        "s.yaml:6: entry 2, operation 1, nmae: unknown key 'nmae'; did you mean 'name'?",
    ]
    assert "unknown key 'Name'; did you mean 'name'?" in refused(Name="widen_mlp", value=2)[0]


@pytest.mark.parametrize("data", [5, "text", {"a": 1}, {"operations": 5}, {"operations": {"name": "x"}}])
def test_not_a_list(tmp_path: Path, data: Any) -> None:
    with pytest.raises(ScheduleError, match=r"a schedule is a list of operations|has no list of operations"):
        Schedule.load(write(tmp_path, json.dumps(data), "s.json"))


@pytest.mark.parametrize("text", ["", "# nothing\n", "   \n"])
def test_an_empty_file_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(DocumentError, match=r"s\.yaml"):
        Schedule.load(write(tmp_path, text))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="no such file"):
        Schedule.of(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "payload",
    [
        "!!python/object/apply:os.system ['touch {mark}']",
        "!!python/object/new:subprocess.Popen [[touch, {mark}]]",
        "!!python/name:os.system",
        "!!python/object/apply:builtins.eval [\"open('{mark}', 'w')\"]",
    ],
)
def test_no_content_of_a_file_is_executed(tmp_path: Path, payload: str) -> None:
    mark = tmp_path / "executed"
    text = "- name: change_lr\n  max_wait_iters: 1\n  value: " + payload.format(mark=mark) + "\n"
    with pytest.raises(DocumentError, match=r"s\.yaml:3: the tag"):
        Schedule.load(write(tmp_path, text))
    code = f"__import__('pathlib').Path('{mark}').touch()"
    for field in ("value", "desc", "init"):
        with pytest.raises(ScheduleError):
            Schedule.of([{"name": "stack_layers", "value": code, "max_wait_iters": 1, field: code}])
    assert not mark.exists()


# --- Repeats ---

LR = {"name": "change_lr", "value": 2.0, "max_wait_iters": 1}
RESET = {"name": "reset_lr_schedule", "value": None, "max_wait_iters": 5}
REPEATS_YAML = """\
- name: change_lr
  value: 0.9
  max_wait_iters: 500
  repeat: 2
- repeat: 1e1
  desc: a group
  operations:
    - {name: stack_layers, value: 2, max_wait_iters: 7, desc: its own}
    - {name: change_lr, value: 0.5, trigger_loss: 3}
- repeat: end
  operations:
    - {name: reset_lr_schedule, value: null, max_wait_iters: 500}
    - {name: reset_optimizer_state, value: null, max_wait_iters: 0}
"""


def test_repeats_are_read_as_if_they_were_written_out(tmp_path: Path) -> None:
    schedule = Schedule.load(write(tmp_path, REPEATS_YAML))
    first = {"name": "change_lr", "value": 0.9, "max_wait_iters": 500}
    group = [
        {"name": "stack_layers", "value": 2, "max_wait_iters": 7, "desc": "its own"},
        {"name": "change_lr", "value": 0.5, "trigger_loss": 3, "desc": "a group"},
    ]
    endless = [
        {"name": "reset_lr_schedule", "value": None, "max_wait_iters": 500},
        {"name": "reset_optimizer_state", "value": None, "max_wait_iters": 0},
    ]
    assert schedule.entries == Schedule.of([first] * 2 + group * 10).entries
    assert schedule.cycle == Schedule.of(endless).entries
    assert len(schedule) == 2 + 20 + 2
    ahead = [schedule.at(index) for index in range(22, 29)]
    assert [entry.operation.name for entry in ahead if entry] == (["reset_lr_schedule", "reset_optimizer_state"] * 4)[
        :7
    ]
    assert Schedule.of([{**first, "repeat": 1}]) == Schedule.of([first])
    assert Schedule.of([first]).at(1) is None
    assert Schedule.of([{**first, "repeat": "end"}]) == Schedule.of([{"repeat": "end", "operations": [first]}])


def test_every_operation_knows_its_item_its_place_in_the_group_and_its_round(tmp_path: Path) -> None:
    schedule = Schedule.load(write(tmp_path, REPEATS_YAML))
    where = [schedule.where(index).split("s.yaml:")[1] for index in (0, 1, 2, 5, 22, 23, 27)]
    assert where == [
        "1: entry 1 (change_lr), round 1",
        "1: entry 1 (change_lr), round 2",
        "8: entry 2, operation 1 (stack_layers), round 1",
        "9: entry 2, operation 2 (change_lr), round 2",
        "12: entry 3, operation 1 (reset_lr_schedule), round 1",
        "13: entry 3, operation 2 (reset_optimizer_state), round 1",
        "13: entry 3, operation 2 (reset_optimizer_state), round 3",
    ]
    assert schedule.where(2, "value").endswith("s.yaml:8: entry 2, operation 1 (stack_layers), round 1, value")
    assert [index for index, _ in schedule.written()] == [0, 2, 3, 22, 23]


def test_wrong_defaults_are_told_once_and_even_if_nothing_uses_them() -> None:
    own = [{"name": "change_lr", "value": 0.5, "max_wait_iters": 1}] * 2
    needing = [{"name": "change_lr", "value": 0.5}] * 2
    wrong: list[tuple[Any, str]] = [
        ({"max_wait_iters": -1}, "defaults, max_wait_iters: must be greater than or equal to 0, is -1"),
        ({"trigger_loss": "x"}, "defaults, trigger_loss: must be a valid number, is 'x'"),
        ({"when": {"at_stp": 5}}, "defaults, when.at_stp: unknown condition 'at_stp'; did you mean 'at_step'?"),
        ({"guard": {"within_steps": 3}}, "defaults, guard.max_loss_increase: is missing"),
        ({"reevaluate": 1}, "defaults, reevaluate: must be a valid boolean, is 1"),
        (0, "defaults must be a mapping, is 0 (int)"),
    ]
    for defaults, what in wrong:
        triggers = isinstance(defaults, dict) and not {"guard", "reevaluate"} & set(defaults)
        for operations in (own, needing if triggers else own):
            with pytest.raises(ScheduleError) as error:
                Schedule.of({"defaults": defaults, "operations": operations})
            assert [str(problem).removeprefix("schedule: ") for problem in error.value.problems] == [what]
    assert len(Schedule.of({"defaults": None, "operations": own})) == 2


def test_whole_numbers_may_be_written_as_floats_everywhere() -> None:
    entry = {"name": "stack_layers", "value": [0.0, 0, 1e0], "when": {"plateau": {"window": 5.0}}}
    read = Schedule.of([entry]).to_list()
    assert read == [{"name": "stack_layers", "value": [0, 0, 1], "when": {"plateau": {"window": 5, "slope": 0.0}}}]
    with pytest.raises(ScheduleError, match=r"0\.5"):
        Schedule.of([{**entry, "value": [0, 0.5, 1]}])


def test_defaults_apply_inside_groups() -> None:
    operations = [
        {"repeat": 2, "operations": [{"name": "change_lr", "value": 2}, {**LR, "reevaluate": False}]},
        {"name": "change_lr", "value": 2, "repeat": "end"},
    ]
    schedule = Schedule.of({"defaults": {"max_wait_iters": 9, "reevaluate": True}, "operations": operations})
    assert [entry.trigger for entry in schedule.entries] == [Waited(value=9), Waited(value=1)] * 2
    assert [entry.reevaluate for entry in schedule.entries] == [True, False] * 2
    assert (schedule.cycle[0].trigger, schedule.cycle[0].reevaluate) == (Waited(value=9), True)


def test_a_position_goes_on_through_the_endless_part() -> None:
    schedule = Schedule.of([{**LR, "completed": True}, LR, {"repeat": "end", "operations": [RESET, LR]}])
    position = Position().settle(schedule)
    assert position.done == 1
    names = []
    for step in range(7):
        entry = position.upcoming(schedule)
        assert entry is not None
        names.append(entry.operation.name)
        position = position.applied(schedule, step)
        assert position.done == 2 + step
    assert names == ["change_lr", *["reset_lr_schedule", "change_lr"] * 3]
    assert position.ask(schedule, replace(TICK, waited=4)) is None
    assert position.ask(schedule, replace(TICK, waited=5)) == "waited 5 steps"


def test_every_problem_of_a_repeat_is_reported_once(tmp_path: Path) -> None:
    text = """\
- name: change_lr
  value: 2
  max_wait_iters: 1
  repeat: 0
- repeat: 5
  operations:
    - name: change_lrr
    - {name: change_lr, value: 2, max_wait_iters: -1}
    - {name: change_lr, value: 2, max_wait_iters: 1,
       completed: true}
    - {name: change_lr, value: 2, max_wait_iters: 1,
       repeat: 2}
    - repeat: 2
      operations: []
    - 7
  dsc: x
- repeat: end
  operations: []
- operations: 5
  repeat: forever
  desc: 3
- repeat: 3
- name: change_lr
  value: 2
  repeet: 3
  max_wait_iters: 1
- operations: [{name: change_lr, value: x, max_wait_iters: 1}]
  name: change_lr
- {name: change_lr, value: 2, max_wait_iters: 1, repeat: 4, completed: true}
"""
    assert lines(tmp_path, text) == [
        "s.yaml:4: entry 1 (change_lr), repeat: must be a whole number from 1, or the word end, is 0",
        "s.yaml:16: entry 2, dsc: unknown key 'dsc'; did you mean 'desc'?",
        "s.yaml:7: entry 2, operation 1, name: unknown operation 'change_lrr'; did you mean 'change_lr'?",
        "s.yaml:8: entry 2, operation 2 (change_lr), max_wait_iters: must be greater than or equal to 0, is -1",
        "s.yaml:10: entry 2, operation 3 (change_lr), completed: what repeats cannot be completed as a whole; write "
        "out the rounds that are done",
        "s.yaml:12: entry 2, operation 4, repeat: a group cannot stand inside another; write out the inner one",
        "s.yaml:13: entry 2, operation 5, repeat: a group cannot stand inside another; write out the inner one",
        "s.yaml:15: entry 2, operation 6: must be a mapping with 'name' and 'value', is 7 (int)",
        "s.yaml:18: entry 3, operations: must have at least 1 item, has 0",
        "s.yaml:17: entry 3, repeat: must be the last item of the list: entry 4 could never be reached; give a number "
        "of times, or move it to the end",
        "s.yaml:21: entry 4, desc: must be a valid string, is 3",
        "s.yaml:19: entry 4, operations: must be a list of operations, is 5 (int)",
        "s.yaml:20: entry 4, repeat: must be a whole number from 1, or the word end, is 'forever'",
        "s.yaml:22: entry 5, operations: is missing; list the operations that repeat, or give the 'name' of a single "
        "one",
        "s.yaml:25: entry 6 (change_lr), repeet: unknown key 'repeet'; did you mean 'repeat'?",
        "s.yaml:28: entry 7, name: unknown key 'name'; valid are desc, operations, repeat",
        "s.yaml:27: entry 7, operation 1 (change_lr), value: must be a valid number, is 'x'",
        "s.yaml:27: entry 7, repeat: is missing; write how many times, or end",
        "s.yaml:29: entry 8 (change_lr), completed: what repeats cannot be completed as a whole; write out the rounds "
        "that are done",
    ]


@pytest.mark.parametrize("repeat", [0, -1, 1.5, True, None, "end ", "End", "3", [2], math.inf, math.nan])
def test_how_often_is_a_number_or_end(repeat: Any) -> None:
    for item in ({**LR, "repeat": repeat}, {"repeat": repeat, "operations": [LR]}):
        with pytest.raises(ScheduleError, match="repeat: must be a whole number from 1, or the word end"):
            Schedule.of([item])


def test_repeats_are_limited_and_cost_nothing_beyond() -> None:
    half = MOST_OPERATIONS // 2
    assert len(Schedule.of([{"repeat": half, "operations": [LR, RESET]}])) == MOST_OPERATIONS
    for repeat in (half + 1, 10**9, 10**5000):
        items = [LR, {"repeat": repeat, "operations": [LR, RESET]}, {**LR, "repeat": repeat * 2}, {**LR, "value": 0}]
        with pytest.raises(ScheduleError) as caught:
            Schedule.of(items)
        assert [str(problem).split(":")[1:] for problem in caught.value.problems] == [
            [
                " entry 2, repeat",
                " makes more than 10,000 operations in all, written out; repeat less often, or to the end",
            ],
            [
                " entry 3 (change_lr), repeat",
                " makes more than 10,000 operations in all, written out; repeat less often, or to the end",
            ],
            [" entry 4 (change_lr), value", " must be a positive, finite number, is 0.0"],
        ]
    Schedule.of([{"repeat": half, "operations": [LR, RESET]}, {"repeat": "end", "operations": [LR]}])
    for items in ([{**LR, "repeat": half}, {**LR, "repeat": half + 1}], [LR, {**LR, "repeat": MOST_OPERATIONS}]):
        with pytest.raises(ScheduleError, match=r"entry 2 \(change_lr\), repeat: makes more than 10,000 operations"):
            Schedule.of(items)


def test_so_many_problems_are_told_at_once_and_the_rest_is_counted() -> None:
    with pytest.raises(ScheduleError) as caught:
        Schedule.of([{**LR, "value": 0}] * 2000)
    assert len(caught.value.problems) == 2000
    lines = str(caught.value).splitlines()
    assert len(lines) == 101
    assert lines[99].startswith("schedule: entry 100 ")
    assert lines[100] == "... and 1,900 more"


@pytest.mark.parametrize("operations", [[], None, 3, "change_lr"])
@pytest.mark.timeout(20)
def test_nothing_repeated_often_costs_nothing(operations: Any) -> None:
    with pytest.raises(ScheduleError, match="entry 1, repeat: makes more than 10,000 operations"):
        Schedule.of([{"repeat": 10**30, "operations": operations}])


def test_repeats_survive_the_round_trip(tmp_path: Path) -> None:
    schedule = Schedule.load(write(tmp_path, REPEATS_YAML))
    listed = schedule.to_list()
    assert listed[-1]["repeat"] == "end"
    assert len(listed) == 23
    for again in (Schedule.of(listed), Schedule.of(json.loads(json.dumps(listed)))):
        assert again == schedule
        assert again.digest == schedule.digest
    assert Schedule.load(write(tmp_path, dump_yaml(listed), "again.yaml")) == schedule
    once = Schedule.of([*listed[:-1], *listed[-1]["operations"]])
    assert once != schedule
    assert once.digest != schedule.digest
    other = [*listed[:-1], {**listed[-1], "operations": listed[-1]["operations"][::-1]}]
    assert Schedule.of(other).digest != schedule.digest


def test_what_is_ahead() -> None:
    group = {"repeat": "end", "operations": ["c", "d", "e"]}
    turned = [{"repeat": "end", "operations": list(names)} for names in ("cde", "dec", "ecd")]
    listed: list[Any] = ["a", "b", group]
    assert ahead(listed, 0) == listed
    assert ahead(listed, 1) == ["b", group]
    for done in range(2, 9):
        assert ahead(listed, done) == [turned[(done - 2) % 3]]
    assert ahead(["a", "b"], 1) == ["b"]  # type: ignore[list-item]
    assert ahead(["a"], 5) == ahead([], 0) == []  # type: ignore[list-item]


# --- Round trip ---


def test_round_trip_and_digest(tmp_path: Path) -> None:
    schedule = Schedule.load(write(tmp_path, PLAIN_YAML))
    assert Schedule.of(schedule.to_list()) == schedule
    assert Schedule.of(json.loads(json.dumps(schedule.to_list()))) == schedule
    assert Schedule.load(write(tmp_path, dump_yaml(schedule.to_list()), "again.yaml")) == schedule
    changes = [("value", 3.0), ("trigger_loss", 6.5), ("max_wait_iters", 9), ("reevaluate", True), ("desc", "other")]
    digests = {schedule.digest}
    for key, value in changes:
        changed = schedule.to_list()
        changed[0][key] = value
        digests.add(Schedule.of(changed).digest)
    digests.add(Schedule.of(schedule.to_list()[::-1]).digest)
    assert len(digests) == len(changes) + 2
    # The same in every process and on every machine.
    pinned = Schedule.of([{"name": "change_lr", "value": 2, "max_wait_iters": 1}]).digest
    assert pinned == "15a044d0ef81fed8b170cf51b1fe805ed7226afa4bf4e7a8e81eb1c6f520a4b7"


_VALUES: dict[str, Any] = {
    "set_batch_size": 8,
    "set_batch_size_relative": 0.5,
    "set_grad_accum": 2,
    "set_warmup_iters": 3,
    "set_eval_iters": 3,
    "set_eval_interval": 3,
    "set_mlp_width": 128,
    "reset_lr_schedule": None,
    "reset_optimizer_state": ["wte", "h.*"],
    "freeze_layer": "attn.0-1",
    "unfreeze_layer": ["mlp.*"],
    "set_attn_lora_rank": 4,
    "set_embedding_lora_rank": 0,
    "set_layer_lora_rank": ["attn.1", 4],
    "merge_lora_weights": None,
    "adjust_batch_size": {"max_batch_size": 64},
    "advance_stage": "b",
}
_simple = st.one_of(
    st.fixed_dictionaries({"loss_below": st.floats(0, 10) | st.just(math.inf)}),
    st.fixed_dictionaries({"waited": st.integers(0, 10**6)}),
    st.fixed_dictionaries({"at_step": st.integers(0, 10**6)}),
    st.fixed_dictionaries({"at_tokens": st.integers(1, 10**12)}),
    st.fixed_dictionaries({"stage": st.sampled_from(["a", {"name": "b", "then": {"waited": 3}}])}),
    st.fixed_dictionaries({"plateau": st.fixed_dictionaries({"window": st.integers(2, 9), "slope": st.floats(0, 1)})}),
)
_when = st.recursive(
    _simple,
    lambda inner: st.sampled_from(["all", "any"]).flatmap(
        lambda kind: st.fixed_dictionaries({kind: st.lists(inner, min_size=1, max_size=3)})
    ),
    max_leaves=6,
)
_entry = st.fixed_dictionaries({"name": st.sampled_from(sorted(NAMES))}).flatmap(
    lambda head: st.fixed_dictionaries(
        {**{key: st.just(value) for key, value in head.items()}, "value": st.just(_VALUES.get(head["name"], 2.0))},
        optional={"reevaluate": st.booleans(), "desc": st.text(), "completed": st.booleans()},
    ).flatmap(
        lambda entry: st.one_of(
            st.fixed_dictionaries({"when": _when}),
            st.fixed_dictionaries({"trigger_loss": st.floats(0, 9), "max_wait_iters": st.integers(0, 999)}),
        ).map(lambda trigger: {**entry, **trigger})
    )
)


_open = _entry.map(lambda entry: {key: value for key, value in entry.items() if key != "completed"})
_group = st.fixed_dictionaries(
    {"repeat": st.integers(1, 3), "operations": st.lists(_open, min_size=1, max_size=3)}, optional={"desc": st.text()}
)
_item = st.one_of(_entry, _open.map(lambda entry: {**entry, "repeat": 2}), _group)
_endless = st.one_of(_open, _group).map(lambda item: {**item, "repeat": "end"})
_schedule = st.tuples(st.lists(_item, max_size=4), st.lists(_endless, max_size=1)).map(
    lambda parts: parts[0] + parts[1]
)


@given(_schedule)
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_any_valid_schedule_survives_the_round_trip(data: list[dict[str, Any]]) -> None:
    schedule = Schedule.of(data)
    times = [1 if item.get("repeat") in (None, "end") else item["repeat"] for item in data]
    assert len(schedule) == sum(
        time * len(item.get("operations", [item])) for time, item in zip(times, data, strict=True)
    )
    again = Schedule.of(json.loads(json.dumps(schedule.to_list())))
    assert again == schedule
    assert again.digest == schedule.digest


_junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(sorted(NAMES)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=5,
)


def _paths(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(found for key, value in inner for found in _paths(value, (*path, key)))]


@given(data=_schedule.filter(bool), junk=_junk, choose=st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_a_mutated_schedule_loads_or_is_refused(data: Any, junk: Any, choose: st.DataObject) -> None:
    changed = copy.deepcopy(data)
    path = choose.draw(st.sampled_from(_paths(changed)))
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    if not path:
        changed = junk
    elif choose.draw(st.booleans()):
        parent[path[-1]] = junk
    else:
        del parent[path[-1]]
    with suppress(ScheduleError):
        # A string would be the path of a file.
        Schedule.of([changed] if isinstance(changed, str) else changed)


@given(text=st.text(max_size=60), cut=st.integers(0, len(PLAIN_YAML)), length=st.integers(0, 40))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_loads_or_is_refused(tmp_path: Path, text: str, cut: int, length: int) -> None:
    for name, source in (("s.yaml", PLAIN_YAML), ("r.yaml", REPEATS_YAML), ("s.json", PLAIN_JSON)):
        path = tmp_path / name
        path.write_bytes((source[:cut] + text + source[cut + length :]).encode("utf-8", "replace"))
        with suppress(ScheduleError, DocumentError):
            Schedule.load(path)


def test_every_condition_is_offered_once() -> None:
    with pytest.raises(ScheduleError) as refused:
        Schedule.of([{"name": "widen_mlp", "value": 2, "when": {"unheard_of": 3}}])
    offered = str(refused.value).rpartition("valid are ")[2].split(", ")
    assert len(offered) == len(set(offered)) > 5
