"""Training in stages: their data and lengths, operations bound to them, the same bits after every interruption."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from morphing_trainer import MorphingTrainer
from morphing_trainer.data.mixture import Mixture
from morphing_trainer.data.samples import Blocks
from morphing_trainer.errors import CheckpointError, ConfigError, DataError, ScheduleError
from morphing_trainer.run.course import TrainingStage
from morphing_trainer.run.journal import read_journal
from morphing_trainer.run.length import Length
from morphing_trainer.run.statistics import overall
from tests.support import Tokens, losses, pieces, same, staged_data, tiny_model, trainer, weights
from tests.trainer.common import HALVES
from tests.trainer.program import Job, complete, killed_repeatedly

GROWING: list[dict[str, Any]] = [
    {"name": "stack_layers", "value": 2, "when": {"stage": {"name": "basics", "then": {"waited": 4}}}},
    {"name": "widen_mlp", "value": 2, "when": {"stage": {"name": "texts", "then": {"waited": 3}}}},
    {"name": "freeze_layer", "value": "wte", "when": {"stage": "mixture"}},
    {"name": "unfreeze_layer", "value": "wte", "max_wait_iters": 3},
]


DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1}


class Fed(TrainerCallback):
    """What each step was computed from, by stage."""

    def __init__(self) -> None:
        self.trainer: MorphingTrainer
        self.steps: list[tuple[str, int, list[int]]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        session = self.trainer.session
        assert session is not None
        cursor = session.state.cursor
        batch = self.trainer.course.batch(session.state.settings)
        layout = cursor.layout(batch)
        end = cursor.position + layout.samples_in(0, layout.per_step)
        indices = cursor.arranged.indices[cursor.position : end].tolist()
        self.steps.append((session.state.stage_name, cursor.epoch, indices))


def run(folder: Path, schedule: Any = GROWING, resume: Any = None, **options: Any) -> MorphingTrainer:
    fed = Fed()
    model = tiny_model(**(DROPOUT if options.pop("dropout", False) else {}))
    made = trainer(folder, schedule, model, callbacks=[fed], **{"stages": staged_data(), **options})
    fed.trainer = made
    made.train(resume)
    made.fed = fed.steps  # type: ignore[attr-defined]
    return made


def operations(folder: Path) -> list[tuple[str, int]]:
    events = read_journal(folder / "journal.jsonl")
    return [(event["record"]["operation"], event["step"]) for event in events if event["event"] == "operation"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> MorphingTrainer:
    """The run without an interruption, saved at every step."""
    folder = tmp_path_factory.mktemp("stages") / "whole"
    return run(folder, dropout=True, save_strategy="steps", save_steps=1, save_total_limit=100)


def test_every_stage_has_its_data_its_length_and_its_operations(whole: MorphingTrainer) -> None:
    assert whole.session is not None
    state = whole.session.state
    # 29 samples in batches of 4: 8 steps an epoch, 12 in one and a half.
    assert state.stages == {"basics": 0, "texts": 12, "mixture": 21}
    assert state.totals["texts"].steps == 9
    assert state.totals["mixture"].tokens >= 500 > state.totals["mixture"].tokens - 4 * 16
    assert state.step == state.end == sum(totals.steps for totals in state.totals.values())
    assert operations(whole.run_folder) == [
        ("stack_layers", 4),
        ("widen_mlp", 15),
        ("freeze_layer", 21),
        ("unfreeze_layer", 24),
    ]
    told = [(e["name"], e["step"]) for e in read_journal(whole.run_folder / "journal.jsonl") if e["event"] == "stage"]
    assert told == [("texts", 12), ("mixture", 21)]


def test_a_stage_begins_with_its_own_learning_rate(whole: MorphingTrainer) -> None:
    """Under a linear decay to the run's end, the peak of the stage counts."""
    end = whole.state.max_steps
    rates = {line["step"]: line["learning_rate"] for line in whole.state.log_history if "learning_rate" in line}
    assert rates[12] == pytest.approx(1e-2 * (1 - 11 / end), rel=0.03)  # the end was only estimated then
    assert rates[13] == pytest.approx(5e-3 * (1 - 12 / end), rel=0.03)


def test_texts_are_read_in_order_and_dropped_at_a_steps_end(whole: MorphingTrainer) -> None:
    texts = staged_data()[1].train_dataset
    starts = set(texts.text_starts.tolist())
    steps = [indices for stage, _, indices in whole.fed if stage == "texts"]  # type: ignore[attr-defined]
    assert len(steps) == 9
    for indices in steps:
        assert indices[0] in starts
        for before, after in pairwise(indices):
            assert after == before + 1 or after in starts
    assert whole.session is not None
    totals = whole.session.state.totals["texts"]
    assert totals.dropped > 0
    cut = sum(indices[-1] + 1 not in {*starts, len(texts)} for indices in steps)
    assert cut > 0
    assert totals.samples == sum(map(len, steps))


def test_texts_far_too_long_for_a_step_are_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stages = [TrainingStage("long", pieces([40, 2]), Tokens(8), Length("steps", 1))]
    run(tmp_path, [], stages=stages)
    assert "step 0: texts are long for the batch: 90 % of the samples are left out" in caplog.text
    caplog.clear()
    run(tmp_path / "short", [], stages=[replace(stages[0], train_dataset=pieces([2, 3, 2, 4, 1]))])
    assert "texts are long" not in caplog.text


def test_no_sample_of_a_plain_stage_is_lost_or_seen_twice(whole: MorphingTrainer) -> None:
    read = [(epoch, index) for stage, epoch, indices in whole.fed if stage == "basics" for index in indices]  # type: ignore[attr-defined]
    assert sorted(index for epoch, index in read if epoch == 0) == list(range(29))
    assert len(set(read)) == len(read)


def test_statistics_are_the_sums_of_the_steps(whole: MorphingTrainer) -> None:
    assert whole.session is not None
    state = whole.session.state
    sums = overall(state.totals.values())
    assert (sums.steps, sums.tokens) == (state.step, state.tokens)
    data = {stage.name: stage.train_dataset for stage in staged_data()}
    for name, totals in state.totals.items():
        samples = [data[name][index] for stage, _, indices in whole.fed for index in indices if stage == name]  # type: ignore[attr-defined]
        assert totals.samples == len(samples)
        assert totals.tokens == sum(len(sample["input_ids"]) for sample in samples)
        assert totals.loss_tokens == sum(int((sample["labels"][1:] != -100).sum()) for sample in samples)
        assert totals.seconds > 0
    # One step per log line, so the mean of a stage's lines is its loss where all steps have as many tokens.
    lines = [line for line in whole.state.log_history if "loss" in line]
    plain = [(line["loss"], 60 if line["step"] != 8 else 15) for line in lines if line["stage"] == "basics"]
    mean = sum(loss * tokens for loss, tokens in plain) / sum(tokens for _, tokens in plain)
    assert state.totals["basics"].loss == pytest.approx(mean, rel=1e-6)
    assert [line["tokens"] for line in lines][-1] == state.tokens


@HALVES
def test_from_every_step_it_ends_with_the_same_bits(whole: MorphingTrainer, tmp_path: Path, first: int) -> None:
    assert whole.session is not None
    for step in range(first, whole.session.state.step + 1, 2):
        checkpoint = str(whole.run_folder / f"checkpoint-{step}")
        resumed = run(tmp_path / str(step), resume=checkpoint, dropout=True)
        assert same(weights(resumed), weights(whole)), f"resumed at {step}"
        assert resumed.session is not None
        for name, totals in resumed.session.state.totals.items():
            assert replace(totals, seconds=0) == replace(whole.session.state.totals[name], seconds=0)
        assert losses(resumed) == losses(whole)


def test_killed_at_random_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = complete(Job(tmp_path / "whole", GROWING, staged=True, dropout=0.1, options=saving))
    job = Job(tmp_path / "killed", GROWING, "if possible", staged=True, dropout=0.1, pause=0.05, options=saving)
    killed_repeatedly(job, [0.3, 0.2, 0.35, 0.15])
    complete(replace(job, pause=0))
    assert same(job.weights(), whole.weights())


def test_two_processes_train_the_same_stages_as_one(tmp_path: Path) -> None:
    one, two = ({"per_device_train_batch_size": size, "adam_epsilon": 1e-5} for size in (4, 2))
    single = complete(Job(tmp_path / "one", GROWING, staged=True, options=one))
    pair = complete(Job(tmp_path / "two", GROWING, staged=True, options=two), processes=2)
    assert single.losses() == pytest.approx(pair.losses(), abs=1e-5)
    for name, weight in single.weights().items():
        torch.testing.assert_close(pair.weights()[name], weight, atol=1e-4, rtol=0)


def test_another_number_of_processes_goes_on_with_the_same_samples(tmp_path: Path) -> None:
    """Without dropout nothing is drawn, so even the weights agree to rounding."""
    saving = {"save_strategy": "steps", "save_steps": 7}
    batch = {1: {"per_device_train_batch_size": 4}, 2: {"per_device_train_batch_size": 2}}
    whole = complete(Job(tmp_path / "whole", GROWING, staged=True, options={**saving, **batch[1]}))
    for step, processes in ((7, 2), (14, 2)):
        start = str(whole.folder / f"checkpoint-{step}")
        job = Job(tmp_path / str(step), GROWING, start, staged=True, options={**saving, **batch[processes]})
        complete(job, processes)
        assert job.losses() == pytest.approx(whole.losses(), abs=1e-5)
        back = Job(
            tmp_path / f"{step}-back",
            GROWING,
            str(job.folder / "checkpoint-21"),
            staged=True,
            options={**saving, **batch[1]},
        )
        complete(back)
        assert back.losses() == pytest.approx(whole.losses(), abs=1e-5)
        events = read_journal(back.folder / "journal.jsonl")
        changed = [(e["name"], e["before"], e["now"]) for e in events if e["event"] == "override"]
        assert ("world_size", 2, 1) in changed


def test_another_batch_size_goes_on_with_the_next_sample(whole: MorphingTrainer, tmp_path: Path) -> None:
    """In the middle of an epoch: what was read stays read, what was not is read."""
    before = [index for stage, epoch, step in whole.fed[:6] for index in step]  # type: ignore[attr-defined]
    resumed = run(
        tmp_path, GROWING[:1], str(whole.run_folder / "checkpoint-6"), dropout=True, per_device_train_batch_size=3
    )
    after = [index for stage, epoch, step in resumed.fed if (stage, epoch) == ("basics", 0) for index in step]  # type: ignore[attr-defined]
    assert sorted(before + after) == list(range(29))
    assert resumed.session is not None
    # 5 samples in batches of 3, then half an epoch of ten steps.
    assert resumed.session.state.stages["texts"] == 6 + 2 + 5


def advance(value: str | None, step: int) -> dict[str, Any]:
    return {"name": "advance_stage", "value": value, "when": {"at_step": step}}


def test_an_operation_ends_a_stage(tmp_path: Path) -> None:
    made = run(tmp_path, [advance(None, 5)])
    assert made.session is not None
    assert made.session.state.stages == {"basics": 0, "texts": 5, "mixture": 14}
    assert made.state.max_steps == made.session.state.step == made.session.state.end


def test_an_operation_goes_on_with_a_later_stage(tmp_path: Path) -> None:
    made = run(tmp_path, [advance("mixture", 5)], save_strategy="steps", save_steps=1, save_total_limit=100)
    assert made.session is not None
    assert made.session.state.stages == {"basics": 0, "texts": 5, "mixture": 5}
    assert made.session.state.totals["texts"].steps == 0
    assert {stage for stage, _, _ in made.fed} == {"basics", "mixture"}  # type: ignore[attr-defined]
    for step in (4, 5, 6):
        resumed = run(tmp_path / str(step), [advance("mixture", 5)], str(tmp_path / f"checkpoint-{step}"))
        assert same(weights(resumed), weights(made)), f"resumed at {step}"


def test_after_the_last_stage_the_run_ends(tmp_path: Path) -> None:
    made = run(tmp_path, [advance("mixture", 5), advance(None, 8)], save_strategy="steps", save_steps=100)
    assert made.session is not None
    assert made.session.state.step == 8
    assert (tmp_path / "checkpoint-8").is_dir(), "saved at its end, as every run is"


def test_a_stage_that_is_behind_is_not_begun_again(tmp_path: Path) -> None:
    made = run(tmp_path, [advance("texts", 14)])
    assert made.session is not None
    assert made.session.state.stages == {"basics": 0, "texts": 12, "mixture": 21}
    (record,) = [e["record"] for e in read_journal(tmp_path / "journal.jsonl") if e["event"] == "operation"]
    assert record["warning"] == "stage 'texts' began at step 12 already"


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            [{"name": "change_lr", "value": 2, "when": {"stage": "text"}}],
            "entry 1 .change_lr., when: there is no stage",
        ),
        ([{"name": "advance_stage", "value": "mixtures", "max_wait_iters": 1}], "did you mean 'mixture'"),
        (
            [{"name": "change_lr", "value": 2, "when": {"all": [{"stage": "x"}, {"waited": 3}]}}],
            "there is no stage 'x'",
        ),
    ],
)
def test_stages_that_a_plan_does_not_have_are_refused(schedule: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match=message):
        trainer(tmp_path, schedule, stages=staged_data())
    assert not (tmp_path / "journal.jsonl").exists()


def test_a_run_without_a_plan_has_no_stages_to_speak_of(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match="there is no stage 'texts'; this run has no training plan"):
        trainer(tmp_path, [{"name": "change_lr", "value": 2, "when": {"stage": "texts"}}])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_steps": 5}, "stand beside max_steps"), ({"stages": "twice"}, "two are called 'texts'")],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    if options.get("stages") == "twice":
        options = {"stages": [staged_data()[1], staged_data()[1]]}
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, **{"stages": staged_data(), **options})


def test_a_stage_without_evaluation_data_is_refused_where_the_run_evaluates(tmp_path: Path) -> None:
    basics, texts, mixture = staged_data()
    with pytest.raises(ConfigError, match="'texts' without an eval_dataset, but the run evaluates"):
        trainer(tmp_path, stages=[basics, replace(texts, eval_dataset=None), mixture])
    trainer(tmp_path, stages=[basics, replace(texts, eval_dataset=None), mixture], eval_strategy="no")


def test_a_resume_may_change_the_stages_ahead_only(whole: MorphingTrainer, tmp_path: Path) -> None:
    basics, texts, mixture = staged_data()
    start = str(whole.run_folder / "checkpoint-14")
    shorter = replace(mixture, length=Length("steps", 2))
    resumed = run(tmp_path / "shorter", GROWING[:3], start, dropout=True, stages=[basics, texts, shorter])
    assert resumed.session is not None
    assert resumed.session.state.step == 23
    events = read_journal(tmp_path / "shorter" / "journal.jsonl")
    assert {"schedule", "stages"} <= {event["name"] for event in events if event["event"] == "override"}
    with pytest.raises(
        CheckpointError, match="has been through the stages basics, texts, but the plan now begins with"
    ):
        run(tmp_path / "other", [], start, dropout=True, stages=[replace(basics, name="start"), texts, mixture])
    other = replace(texts, train_dataset=pieces([3, 1, 4, 2, 6, 1, 5, 3, 2, 4], seed=9))
    with pytest.raises(CheckpointError, match="the training data of stage 'texts' is not what it was"):
        run(tmp_path / "data", GROWING, start, dropout=True, stages=[basics, other, mixture])


def test_reset_history_forgets_statistics_and_nothing_else(whole: MorphingTrainer, tmp_path: Path) -> None:
    start = str(whole.run_folder / "checkpoint-14")
    resumed = run(tmp_path, resume=start, dropout=True, reset_history=True)
    assert same(weights(resumed), weights(whole))
    assert resumed.session is not None
    assert whole.session is not None
    assert resumed.session.state.stages == whole.session.state.stages
    assert set(resumed.session.state.totals) == {"texts", "mixture"}
    assert resumed.session.state.totals["texts"].steps == 21 - 14
    assert min(line["step"] for line in resumed.state.log_history) == 15


def test_a_stage_in_tokens_reads_as_many_epochs_as_it_needs(tmp_path: Path) -> None:
    """Also where an epoch is shorter than a step."""
    stages = [
        TrainingStage("tiny", Tokens(5), Tokens(8), Length("tokens", 600)),
        TrainingStage("after", Tokens(9), Tokens(8), Length("steps", 2)),
    ]
    made = run(tmp_path, [], stages=stages, per_device_train_batch_size=40)
    assert made.session is not None
    state = made.session.state
    assert state.totals["tiny"].tokens == 8 * 5 * 16  # the first number of whole steps with 600 tokens
    assert state.totals["after"].steps == 2
    assert state.step == state.end == made.state.max_steps == 10


@HALVES
@pytest.mark.parametrize("scheduler", [pytest.param("linear", marks=pytest.mark.long), "cosine"])
def test_where_the_end_was_only_estimated_the_rate_is_the_same_after_a_resume(
    tmp_path: Path, scheduler: str, first: int
) -> None:
    """Samples of a stage in tokens differ in length, so its end moves while the learning rate decays to it."""
    long_first = pieces([3, 1, 4, 2, 6, 1, 5, 3, 2, 4], seed=8)
    stages = [
        TrainingStage("texts", long_first, Tokens(8), Length("tokens", 700)),
        TrainingStage("plain", Tokens(13), Tokens(8), Length("tokens", 450)),
    ]
    options = {"stages": stages, "lr_scheduler_type": scheduler, "per_device_train_batch_size": 3}
    whole = run(tmp_path / "whole", [], **options, save_strategy="steps", save_steps=1, save_total_limit=100)
    assert whole.session is not None
    end = whole.session.state.step
    assert whole.session.state.planned != end, "or nothing is shown"
    for step in range(first, end, 2):
        resumed = run(tmp_path / str(step), [], str(whole.run_folder / f"checkpoint-{step}"), **options)
        assert same(weights(resumed), weights(whole)), f"resumed at {step}"


def test_a_fraction_of_an_epoch_of_texts_ends_within_it(tmp_path: Path) -> None:
    """Whatever the batch is on the way, though each step leaves some samples out."""
    texts = pieces([5, 7, 3, 9, 4, 6, 8, 2, 5, 7])
    stage = TrainingStage("texts", texts, Tokens(8), Length("epochs", 0.7))
    for step, batch in ((1, 6), (1, 9), (2, 2)):
        schedule = [{"name": "set_batch_size", "value": batch, "max_wait_iters": step}]
        made = run(tmp_path / f"{step}-{batch}", schedule, stages=[stage], per_device_train_batch_size=7)
        assert made.session is not None
        cursor = made.session.state.cursor
        assert cursor.epoch == 0
        last = made.fed[-1][2]  # type: ignore[attr-defined]
        order = cursor.arranged.indices.tolist()
        assert order.index(last[0]) < 0.7 * len(texts) <= cursor.position


def test_a_change_of_a_later_stage_leaves_the_end_of_the_current_alone(tmp_path: Path) -> None:
    texts = TrainingStage("texts", pieces([5, 7, 3, 9, 4, 6, 8, 2]), Tokens(8), Length("epochs", 0.9))
    after = TrainingStage("after", Tokens(9), Tokens(8), Length("steps", 3))
    whole = run(tmp_path / "whole", [], stages=[texts, after], save_strategy="steps", save_steps=1, save_total_limit=99)
    assert whole.session is not None
    end = whole.session.state.stages["after"]
    for step in range(1, end):
        longer = replace(after, length=Length("steps", 4))
        start = str(whole.run_folder / f"checkpoint-{step}")
        resumed = run(tmp_path / str(step), [], start, stages=[texts, longer])
        assert resumed.session is not None
        assert resumed.session.state.stages["after"] == end
        assert resumed.session.state.step == end + 4


def test_intervals_that_are_shares_stay_what_they_were(tmp_path: Path) -> None:
    twenty = Length("steps", 20)
    stages = [TrainingStage(name, Tokens(20, seed=seed), Tokens(8), twenty) for seed, name in enumerate("ab")]
    options = {"stages": stages, "logging_steps": 0.1, "save_steps": 0.1, "save_strategy": "steps"}
    whole = run(tmp_path / "whole", [advance(None, 5)], **options, save_total_limit=100)
    resumed = run(tmp_path / "resumed", [advance(None, 5)], str(whole.run_folder / "checkpoint-8"), **options)
    lines = [[line["step"] for line in made.state.log_history if "loss" in line] for made in (whole, resumed)]
    assert lines[0] == lines[1] == list(range(4, 25, 4))
    names = {path.name for path in (tmp_path / "resumed").glob("checkpoint-*")}
    assert names <= {path.name for path in whole.run_folder.glob("checkpoint-*")}


def test_a_stage_is_evaluated_once_at_its_end(tmp_path: Path) -> None:
    made = run(tmp_path, [], eval_strategy="epoch")
    steps = [line["step"] for line in made.state.log_history if "eval_loss" in line]
    assert len(steps) == len(set(steps))
    assert {12, 21} <= set(steps)


def test_two_stages_over_the_same_data_read_it_in_another_order(tmp_path: Path) -> None:
    made = run(tmp_path, [], stages=[TrainingStage(name, Tokens(40), Tokens(8), Length("steps", 5)) for name in "ab"])
    first, second = ([step for stage, _, step in made.fed if stage == name] for name in "ab")  # type: ignore[attr-defined]
    assert first != second


def test_a_batch_too_large_for_a_mixture_is_refused(tmp_path: Path) -> None:
    """An epoch of a mixture is shorter than its parts together."""
    parts = [Blocks(Tokens(count).tokens.numpy().astype(np.int32)) for count in (3, 100)]
    stage = TrainingStage("mixture", Mixture(parts, [1, 1]), Tokens(8), Length("steps", 5))
    schedule = [{"name": "set_batch_size", "value": 16, "max_wait_iters": 1}]
    with pytest.raises(ScheduleError, match="6 samples make no complete batch of 16"):
        trainer(tmp_path, schedule, stages=[stage], dataloader_drop_last=True, per_device_train_batch_size=2)


def test_a_stage_too_small_for_a_batch_is_refused(tmp_path: Path) -> None:
    small = TrainingStage("small", Tokens(3), None, Length("steps", 2))
    with pytest.raises(DataError, match="of stage 'small': 3 samples make no complete batch of 4"):
        trainer(tmp_path, stages=[small], dataloader_drop_last=True, eval_strategy="no")


def test_lengths_are_estimated_from_the_start(whole: MorphingTrainer) -> None:
    """Of texts with drops and samples of many lengths too, so that the learning-rate schedule is laid out."""
    assert whole.session is not None
    planned = trainer(whole.run_folder, stages=staged_data(), overwrite_output_dir=True)._fresh_state()
    assert planned.stage_end == 12
    assert math.isclose(planned.end, whole.session.state.end, rel_tol=0.1)
