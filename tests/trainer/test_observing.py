"""What a run tells of itself: statistics, log lines, time, analysis; and that none of it changes the run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from morphing_trainer import LoraArguments, MorphingTrainer, add_adapters
from morphing_trainer.errors import ConfigError, ScheduleError
from morphing_trainer.reporting.times import PARTS
from morphing_trainer.run.history import read_history
from morphing_trainer.run.journal import read_journal
from tests.support import LENGTH, same, tiny_model, trainer, weights
from tests.trainer.common import StopsAfter, applied, entry

ON_RANK = [
    entry("set_attn_lora_rank", 6, when={"rank_use_above": 0.3}),
    entry("stack_layers", 2, when={"rank_use_above": 0.3}),
]


def adapted() -> Any:
    return add_adapters(tiny_model(resid_pdrop=0.1), LoraArguments(lora_r=4))


def stats(folder: Path, name: str = "overall") -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "stats" / f"{name}.json").read_text())
    return data


def analyses(run: MorphingTrainer) -> list[dict[str, Any]]:
    return [line for line in run.state.log_history if "analysis/rank_attn" in line]


# --- Statistics ---


def test_statistics_are_those_of_the_run(tmp_path: Path) -> None:
    run = trainer(tmp_path, [entry("set_batch_size", 8, 6)])
    run.train()
    found = stats(tmp_path)
    samples = 6 * 4 + 6 * 8
    assert (found["train"]["steps"], found["train"]["samples"], found["train"]["tokens"]) == (12, samples, 16 * samples)
    assert found["train"]["loss_tokens"] == 15 * samples  # the first token of a sample is not predicted
    evaluated = [(line["eval_loss"], line["step"]) for line in run.state.log_history if "eval_loss" in line]
    assert found["validation"]["evaluations"] == len(evaluated)
    loss = found["validation"]["loss"]
    assert (loss["last"], loss["last_step"]) == evaluated[-1]
    assert (loss["best"], loss["best_step"]) == min(evaluated)
    assert stats(tmp_path, "train")["train"]["steps"] == 12


class Peeks(TrainerCallback):
    """Reads the statistics at every step."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder, dict[int, int]()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (self.folder / "stats" / "overall.json").exists():
            self.seen[state.global_step] = stats(self.folder)["train"]["steps"]


def test_they_are_written_at_evaluations_and_checkpoints(tmp_path: Path) -> None:
    peeks = Peeks(tmp_path)
    trainer(tmp_path, callbacks=[peeks], save_strategy="steps", save_steps=3).train()
    assert peeks.seen == {3: 3, 4: 3, 5: 5, 6: 6, 7: 6, 8: 6, 9: 9, 10: 10, 11: 10}


def test_where_the_run_stands_is_told_once_a_second_and_after_an_operation(tmp_path: Path) -> None:
    """Not at every log line: to replace a file takes milliseconds."""
    told: list[tuple[int, int]] = []

    class Looks(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found = stats(tmp_path, "progress")
            told.append((found["step"], found["operations"]))

    options = {"eval_strategy": "no", "logging_steps": 1, "max_steps": 40}
    began = time.monotonic()
    trainer(tmp_path, [entry("widen_mlp", 1.5, 20)], callbacks=[Looks()], **options).train()
    after = {20: (20, 1), 40: (40, 1)}  # the operation, and the end
    assert told[20] == after[20]
    assert told[1] == (1, 0)  # the first that knows how long samples are
    assert len(set(told) - {(0, 0), (1, 0), *after.values()}) <= time.monotonic() - began
    end = stats(tmp_path, "progress")
    assert (end["step"], end["operations"]) == after[40]


def test_a_resumed_run_goes_on_counting_and_its_log_has_no_line_twice(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}
    schedule = [entry("stack_layers", 2, 6)]
    whole = trainer(tmp_path / "whole", schedule, **options)
    whole.train()
    folder = tmp_path / "parts"
    trainer(folder, schedule, callbacks=[StopsAfter(7)], **options).train()  # three steps beyond its checkpoint
    again = trainer(folder, schedule, **options)
    again.train(str(folder / "checkpoint-4"))
    left, right = stats(tmp_path / "whole"), stats(folder)
    for part in ("train", "validation"):
        left[part].pop("seconds", None)
        right[part].pop("seconds", None)
        assert left[part] == right[part]
    lines = read_history(folder / "stats" / "history.jsonl")
    assert [line["step"] for line in lines] == [line["step"] for line in whole.state.log_history]
    assert [line.get("loss") for line in lines] == [line.get("loss") for line in whole.state.log_history]


def test_an_overwritten_run_leaves_no_statistics(tmp_path: Path) -> None:
    trainer(tmp_path).train()
    (tmp_path / "stats" / "old.json").touch()
    trainer(tmp_path, overwrite_output_dir=True).train()
    assert not (tmp_path / "stats" / "old.json").exists()


def test_every_log_line_says_what_was_computed(tmp_path: Path) -> None:
    run = trainer(tmp_path, [entry("stack_layers", 2, 6)])
    run.train()
    flos = [line["total_flos"] for line in run.state.log_history]
    assert flos == sorted(flos) and flos[-1] == run.state.total_flos
    by_step = {line["step"]: line["total_flos"] for line in run.state.log_history}
    assert by_step[12] - by_step[11] > by_step[2] - by_step[1] > 0  # twice the layers


# --- Time ---


def test_time_is_told_by_part_and_kept_over_a_restart(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}
    run = trainer(tmp_path, [entry("stack_layers", 2, 2)], callbacks=[StopsAfter(8)], **options)
    run.train()
    first = stats(tmp_path)
    timing = first["timing"]
    assert set(timing) == set(PARTS)
    assert sum(part["seconds"] for part in timing.values()) == pytest.approx(first["train"]["seconds"], rel=0.05)
    assert sum(part["share"] for part in timing.values()) == pytest.approx(1, abs=0.001)
    morphs = timing["morphs"]["seconds"]
    again = trainer(tmp_path, [entry("stack_layers", 2, 2)], **options)
    again.train(True)
    assert stats(tmp_path)["timing"]["morphs"]["seconds"] == pytest.approx(morphs, abs=0.002)  # there was no other
    assert "Time: " in (tmp_path / "logs" / "train.log").read_text()


# --- Analysis ---


def test_it_is_off_by_default_and_changes_nothing_when_on(tmp_path: Path) -> None:
    runs = []
    for evals in (None, 1):
        runs.append(trainer(tmp_path / str(evals), None, adapted(), analysis_evals=evals))
        runs[-1].train()  # before the next is made, which sets the seed
    assert analyses(runs[0]) == [] and [line["step"] for line in analyses(runs[1])] == [5, 10, 12]
    assert same(weights(runs[0]), weights(runs[1]))


def test_every_second_evaluation(tmp_path: Path) -> None:
    run = trainer(tmp_path, None, adapted(), analysis_evals=2, eval_steps=2)
    run.train()
    assert [line["step"] for line in analyses(run)] == [4, 8, 12]
    noted = [event for event in read_journal(tmp_path / "journal.jsonl") if event["event"] == "analysis"]
    assert [event["step"] for event in noted] == [4, 8, 12]
    assert noted[0]["weights"]["h.0.attn.c_attn adapter"][1] == 4
    assert noted[0]["rank_use"] == analyses(run)[0]["analysis/rank_use"]


def test_drift_counts_from_the_start_and_from_the_operation(tmp_path: Path) -> None:
    run = trainer(tmp_path, [entry("set_lr", 1e-2, 7)], analysis_evals=1, learning_rate=1e-3)
    run.train()
    lines = {line["step"]: line for line in analyses(run)}
    start, since = "analysis/drift_start_mlp", "analysis/drift_operation_mlp"
    assert lines[5][start] == lines[5][since] > 0  # there was no operation yet
    assert 0 < lines[10][since] != lines[10][start] > lines[5][start]


def test_a_rank_rises_at_the_analysis_that_asks_for_it(tmp_path: Path) -> None:
    run = trainer(tmp_path, ON_RANK, adapted(), analysis_evals=2, eval_steps=2, max_steps=16)
    run.train()
    assert applied(run) == [("set_attn_lora_rank", 4), ("stack_layers", 8)]
    uses = {line["step"]: line["analysis/rank_use"] for line in analyses(run)}
    assert run._reports.records[0].trigger == f"adapters use {uses[4]:.4f} > 0.3 of their rank"


def test_what_was_measured_before_an_operation_counts_no_longer(tmp_path: Path) -> None:
    options: dict[str, Any] = {"analysis_evals": 2, "eval_steps": 2, "save_strategy": "steps", "save_steps": 1}
    run = trainer(tmp_path, ON_RANK, adapted(), max_steps=6, save_total_limit=9, **options)
    run.train()
    saved = [json.loads((tmp_path / f"checkpoint-{n}" / "morph_state.json").read_text())["state"] for n in (3, 4, 5)]
    assert [state["rank_use"] for state in saved] == [None, analyses(run)[0]["analysis/rank_use"], None]


def test_a_reevaluation_is_no_analysis(tmp_path: Path) -> None:
    schedule = [entry("set_lr", 1e-3, 3, reevaluate=True), *ON_RANK[:1]]
    run = trainer(tmp_path, schedule, adapted(), analysis_evals=1)
    run.train()
    assert [line["step"] for line in analyses(run)] == [5, 10, 12]


@pytest.mark.parametrize("stop", [4, 6, 8])
def test_a_resumed_run_fires_at_the_same_step_and_ends_in_the_same_bits(tmp_path: Path, stop: int) -> None:
    options: dict[str, Any] = {"analysis_evals": 2, "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path / "whole", ON_RANK, adapted(), **options)
    whole.train()
    folder = tmp_path / "parts"
    trainer(folder, ON_RANK, adapted(), callbacks=[StopsAfter(stop)], **options).train()
    again = trainer(folder, ON_RANK, adapted(), **options)
    again.train(str(folder / f"checkpoint-{stop}"))
    assert applied(again) == applied(whole) == [("set_attn_lora_rank", 4), ("stack_layers", 8)]
    assert same(weights(whole), weights(again))

    def numbers(run: MorphingTrainer) -> list[dict[str, Any]]:
        return [{key: value for key, value in line.items() if key != "seconds"} for line in analyses(run)]

    assert numbers(again) == numbers(whole)  # the drift too: a checkpoint holds what it counts from


def test_analysis_taken_up_on_a_resume_says_what_it_does_not_know(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5}
    schedule = [entry("set_lr", 1e-3, 7)]
    trainer(tmp_path, schedule, callbacks=[StopsAfter(5)], **options).train()
    again = trainer(tmp_path, schedule, analysis_evals=1, **options)
    again.train(True)
    assert "saved without it" in (tmp_path / "logs" / "train.log").read_text()
    line = analyses(again)[0]
    assert line["step"] == 10 and "analysis/drift_start_mlp" not in line and line["analysis/drift_operation_mlp"] > 0


def test_a_schedule_that_needs_the_analysis_is_refused_without_it(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match="set analysis_evals: 1"):
        trainer(tmp_path, ON_RANK, adapted())


def test_bad_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="analysis_evals: must be at least 1, is 0"):
        trainer(tmp_path, analysis_evals=0)
    with pytest.raises(ConfigError, match="analysis_evals: counts evaluations"):
        trainer(tmp_path, analysis_evals=1, eval_strategy="no", eval_steps=None)


class Counts(TrainerCallback):
    """The inherited count of a step's floating-point operations, taken anew from the model of the moment."""

    def __init__(self) -> None:
        self.trainer: MorphingTrainer | None = None
        self.total = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        tokens = torch.zeros(args.per_device_train_batch_size, LENGTH)
        self.total += float(Trainer.floating_point_ops(self.trainer, {"input_ids": tokens}))


def test_floating_point_operations_follow_every_change_of_the_model(tmp_path: Path) -> None:
    names = [("stack_layers", 2), ("widen_mlp", 2), ("set_attn_lora_rank", 2), ("merge_lora_weights", None)]
    schedule = [
        {"name": name, "value": value, "when": {"at_step": 2 * number}} for number, (name, value) in enumerate(names, 1)
    ]
    counts = Counts()
    run = trainer(tmp_path, schedule, callbacks=[counts])
    counts.trainer = run
    run.train()
    assert len(run.session.state.executed) == len(names)  # type: ignore[union-attr]
    assert run.state.total_flos == counts.total
