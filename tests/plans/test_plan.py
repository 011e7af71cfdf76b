"""Plans: what a file may say, what is wrong with it, and the data sets and the schedule that come of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from morphing_trainer.cli.arguments import parse
from morphing_trainer.data.request import DataRequest
from morphing_trainer.data.tokenizer import train_tokenizer
from morphing_trainer.errors import ConfigError, DataError, ScheduleError
from morphing_trainer.plans import load_plan
from morphing_trainer.plans.opening import open_plan, requested
from morphing_trainer.plans.plan import BUILT_IN, check_alone
from morphing_trainer.run.length import Length
from morphing_trainer.schedule import Schedule

PLANS = Path(__file__).parents[2] / "configs" / "plans"


def written(folder: Path, text: str, name: str = "plan.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


GOOD = """
first:
  dataset: demo
  epochs: 0.5
  desc: short and easy
mixture:
  mix:
    - {dataset: demo, weight: 3}
    - {dataset: [a.txt, b.md], weight: 1, text_column: body}
  steps: 1e3
  validation_split: 0.1
  schedule:
    - {name: stack_layers, value: 2, trigger_loss: 4, max_wait_iters: 100, desc: deeper}
    - {name: change_lr, value: 0.5, repeat: 2, max_wait_iters: 10}
last:
  dataset: org/data
  dataset_config: small
  tokens: 1e6
  learning_rate: 1e-4
  sample_mode: continuation
  schedule: other.yaml
"""


def test_a_plan_is_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "- {name: freeze_layer, value: wte, repeat: end, max_wait_iters: 7}", "other.yaml")
    plan = load_plan(written(tmp_path, GOOD))
    assert [stage.name for stage in plan.stages] == ["first", "mixture", "last"]
    lengths = [stage.length for stage in plan.stages]
    assert lengths == [Length("epochs", 0.5), Length("steps", 1000), Length("tokens", 1_000_000)]
    assert [str(length) for length in lengths] == ["0.5 epochs", "1,000 steps", "1,000,000 tokens"]
    assert plan.stages[2].fields.learning_rate == 1e-4

    asked = DataRequest(text_column="content", seed=4, block_size=64)
    first, mixture, last = ([requested(part, asked) for part in stage.fields.parts] for stage in plan.stages)
    assert first == [asked]
    assert mixture == [
        replace(asked, validation_split=0.1),
        replace(asked, validation_split=0.1, train_file=("a.txt", "b.md"), text_column="body"),
    ]
    assert last == [
        replace(asked, dataset_name="org/data", dataset_config="small", sample_mode="continuation"),
    ]


def test_the_schedules_of_the_stages_become_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "- {name: freeze_layer, value: wte, repeat: end, max_wait_iters: 7}", "other.yaml")
    schedule = load_plan(written(tmp_path, GOOD)).schedule
    described = [entry.trigger.describe() for entry in (*schedule.entries, *schedule.cycle)]
    assert described == [
        "in stage mixture: loss < 4 or after 100 steps",
        "in stage mixture: after 10 steps",
        "in stage mixture: after 10 steps",
        "in stage last: after 7 steps",
    ]
    assert schedule.entries[0].desc == "deeper"
    assert Schedule.of(schedule.to_list()).to_list() == schedule.to_list()
    # A problem of the run is told where it was written.
    assert schedule.where(0, "value") == f"{tmp_path}/plan.yaml:13: entry 1 (stack_layers), value"
    assert schedule.where(3).startswith("other.yaml:1: entry 1")


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("a: {dataset: demo}", ["1: stage a: has no length; give epochs, steps or tokens"]),
        ("a: {dataset: demo, epochs: 1, steps: 3}", ["1: stage a: gives epochs and steps; keep one"]),
        ("a: {epochs: 1}", ["1: stage a: has no data; give dataset, or mix with several"]),
        ("a: {dataset: x, mix: [{dataset: y}], epochs: 1}", ["1: stage a: gives both dataset and mix; keep one"]),
        ("a: {dataset: demo, epochs: 0}", ["1: stage a, epochs: must be a positive, finite number, is 0"]),
        ("a: {dataset: demo, epochs: -1}", ["1: stage a, epochs: must be a positive, finite number, is -1"]),
        ("a: {dataset: demo, epochs: .inf}", ["1: stage a, epochs: must be a positive, finite number"]),
        ("a: {dataset: demo, steps: 0}", ["1: stage a, steps: must be greater than or equal to 1, is 0"]),
        ("a: {dataset: demo, steps: 1.5}", ["1: stage a, steps: must be a valid integer"]),
        ("a: {dataset: demo, tokens: many}", ["1: stage a, tokens: must be a valid integer, is 'many'"]),
        ("a: {dataset: demo, steps: 3, learning_rate: -1}", ["stage a, learning_rate: must be a finite number from 0"]),
        ("a: {dataset: demo, steps: 3, sample_mode: pack}", ["sample_mode: must be 'packing' or 'continuation'"]),
        (
            "a: {dataset: demo, steps: 3, learning_rat: 1}\nb: {dataset: demo, step: 3}",
            [
                "1: stage a, learning_rat: unknown key 'learning_rat'; did you mean 'learning_rate'",
                "2: stage b, step: unknown key 'step'; did you mean 'steps'",
            ],
        ),
        ("a: {mix: [{dataset: x, weight: 0}], steps: 3}", ["stage a, mix.0.weight: must be a positive, finite number"]),
        ("a: {mix: [{weight: 1}], steps: 3}", ["1: stage a, mix.0.dataset: is missing"]),
        (
            "a: {mix: [demo], steps: 3}",
            ["mix.0: must be a mapping such as {dataset: demo, weight: 1}, is 'demo'"],
        ),
        ("a: {mix: [], steps: 3}", ["1: stage a, mix: must have at least 1 item"]),
        ("a: demo", ["1: stage a: must be a mapping such as {dataset: demo, epochs: 1}, is 'demo'"]),
        ("- {dataset: demo}", ["a plan is a mapping `stage: {dataset: ..., epochs: ...}`"]),
        ("a: {dataset: demo, steps: 1}\na: {dataset: demo, steps: 1}", ["2: "]),
    ],
)
def test_every_problem_is_told_with_its_line(text: str, problems: list[str], tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_plan(path)
    lines = str(error.value).splitlines()
    assert len(lines) == len(problems)
    for line, problem in zip(lines, problems, strict=True):
        assert line.startswith(f"{path}:")
        assert problem in line


def test_problems_of_the_schedules_are_told_together(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "a:\n  dataset: demo\n  steps: 3\n  schedule:\n    - {name: stack_layer, value: 2, max_wait_iters: 1}\n"
        "b:\n  dataset: demo\n  steps: 3\n  schedule:\n    - {name: change_lr, value: 0, max_wait_iters: 1}\n",
    )
    with pytest.raises(ScheduleError) as error:
        load_plan(path)
    assert f"{path}:5: entry 1, name: unknown operation 'stack_layer'" in str(error.value)
    assert f"{path}:10: entry 1 (change_lr), value: must be a positive, finite number" in str(error.value)


def test_a_schedule_that_is_missing_is_told_with_its_stage(tmp_path: Path) -> None:
    path = written(tmp_path, "a:\n  dataset: demo\n  steps: 3\n  schedule: nowhere.yaml\n")
    with pytest.raises(ScheduleError, match=r"plan\.yaml:4: stage a, schedule: nowhere\.yaml: there is no such file"):
        load_plan(path)


def test_what_repeats_to_the_end_must_be_of_the_last_schedule(tmp_path: Path) -> None:
    endless = "[{name: change_lr, value: 0.9, max_wait_iters: 5, repeat: end}]"
    text = f"a: {{dataset: demo, steps: 3, schedule: {endless}}}\nb: {{dataset: demo, steps: 3, schedule: {endless}}}"
    with pytest.raises(ScheduleError, match="2: stage b, schedule: repeat: end in the schedule of a stage before"):
        load_plan(written(tmp_path, text))


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_plans_are_there_by_name(name: str) -> None:
    plan = load_plan(name)
    assert plan.stages


@pytest.mark.parametrize("path", sorted(PLANS.glob("*")), ids=lambda path: path.name)
def test_the_plans_that_come_as_examples_can_be_read(path: Path) -> None:
    assert load_plan(str(path)).stages


def test_a_name_that_is_no_plan_is_refused() -> None:
    with pytest.raises(ConfigError, match="'wikitxt' is no file and no built-in plan; did you mean 'wikitext'"):
        load_plan("wikitxt")


def test_json_reads_as_yaml_does(tmp_path: Path) -> None:
    data = {
        "only": {"dataset": "demo", "steps": 5, "schedule": [{"name": "set_lr", "value": 1e-3, "max_wait_iters": 1}]}
    }
    plan = load_plan(written(tmp_path, json.dumps(data), "plan.json"))
    assert (plan.stages[0].length, len(plan.schedule)) == (Length("steps", 5), 1)


def test_a_stage_opens_its_data_and_mixes_it(tmp_path: Path) -> None:
    pages = written(tmp_path, "Once upon a time there was a page. " * 400, "pages.md")
    more = written(tmp_path, "Numbers are one, two, three, four and five. " * 100, "more.txt")
    text = f"a: {{mix: [{{dataset: {pages}, weight: 1}}, {{dataset: {more}, weight: 1}}], epochs: 1}}\n"
    text += f"b: {{dataset: [{pages}, {more}], steps: 2, learning_rate: 1e-3}}"
    mixture, both = open_plan(load_plan(written(tmp_path, text)), DataRequest(block_size=16, workers=1))
    tokenizer = train_tokenizer([Path(pages).read_text()], 300)
    stage = mixture.samples(tokenizer, None)
    first, second = (len(part) for part in stage.train_dataset.parts)
    assert len(stage.train_dataset) == first + second
    assert stage.train_dataset.order.counts.tolist() == [min(first, second)] * 2
    assert len(stage.eval_dataset) > 0
    assert (stage.name, stage.length, stage.learning_rate) == ("a", Length("epochs", 1), None)
    assert both.samples(tokenizer, None).learning_rate == 1e-3


def test_missing_data_names_the_stage(tmp_path: Path) -> None:
    path = written(tmp_path, "a: {dataset: demo, steps: 2}\nb: {dataset: nowhere.txt, steps: 2}")
    with pytest.raises(DataError, match=r"plan\.yaml: stage 'b': train_file 'nowhere\.txt': does not exist"):
        open_plan(load_plan(path), DataRequest())


def test_a_plan_and_other_data_or_lengths_exclude_each_other() -> None:
    given = ["--plan", "demo", "--dataset_name", "x", "--max_steps", "3"]
    with pytest.raises(ConfigError) as error:
        parse(given)
    for name in ("dataset_name", "max_steps"):
        assert f"command line: {name}: stands beside plan 'demo' (command line), whose stages say it" in str(
            error.value
        )


def test_two_schedules_exclude_each_other() -> None:
    check_alone(load_plan("wikitext"), "s.yaml")
    with pytest.raises(ConfigError, match=r"s\.yaml stands beside plan demo"):
        check_alone(load_plan("demo"), "s.yaml")


def test_a_stage_that_the_plan_does_not_have_is_told_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(
        "one:\n  dataset: demo\n  steps: 1\n  schedule:\n    - {name: advance_stage, value: tow, max_wait_iters: 3}\n"
        "two: {dataset: demo, steps: 1}\n"
    )
    with pytest.raises(ScheduleError, match=r"plan.yaml:5: .*value: there is no stage 'tow'; did you mean 'two'\?"):
        load_plan(str(path))
