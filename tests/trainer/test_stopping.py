"""Early stopping: when it stops, what it restores, and that a resume changes nothing of it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import EarlyStoppingCallback, GPT2LMHeadModel

from morphing_trainer import MorphingTrainer
from morphing_trainer.errors import ConfigError
from morphing_trainer.run.journal import read_journal
from tests.support import Tokens, arguments, same, tiny_model, trainer, weights
from tests.trainer.common import applied, entry, evaluations

WORSE = [entry("stack_layers", 2, 8), entry("set_lr", 3.0, 1)]
"""The run learns for 9 steps, in two of which it is deeper, and is ruined then."""

OPTIONS = {"lr_scheduler_type": "constant", "eval_steps": 2, "max_steps": 60, "early_stopping_patience": 3}


def test_it_stops_and_restores_the_best_weights(tmp_path: Path) -> None:
    run = trainer(tmp_path, WORSE, **OPTIONS)
    run.train()
    scores = dict(evaluations(run))
    best = min(scores, key=scores.__getitem__)
    assert best <= 10
    assert run.state.global_step == best + 3 * 2
    assert run.evaluate()["eval_loss"] == pytest.approx(scores[best], rel=1e-6)
    assert run.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert run.model.config.n_layer == (2 if best <= 8 else 4)
    (event,) = [line for line in read_journal(tmp_path / "journal.jsonl") if line["event"] == "stopped_early"]
    assert (event["step"], event["best"], event["evaluations"]) == (best + 6, scores[best], 3)
    run.save_whole(tmp_path / "model")
    assert GPT2LMHeadModel.from_pretrained(tmp_path / "model").config.n_layer == run.model.config.n_layer


@pytest.mark.parametrize("saving", [{"save_strategy": "no"}, {"save_strategy": "best"}, {"save_steps": 500}])
def test_every_new_best_is_saved_whatever_else_is(tmp_path: Path, saving: dict[str, Any]) -> None:
    run = trainer(tmp_path, WORSE, **{**OPTIONS, "save_strategy": "steps", **saving})
    run.train()
    scores = dict(evaluations(run))
    best = min(scores, key=scores.__getitem__)
    assert (tmp_path / f"checkpoint-{best}").is_dir()
    assert run.evaluate()["eval_loss"] == pytest.approx(scores[best], rel=1e-6)


def test_without_a_lasting_loss_it_goes_on(tmp_path: Path) -> None:
    run = trainer(tmp_path, **{**OPTIONS, "max_steps": 12})
    run.train()
    assert run.state.global_step == 12
    assert (
        trainer(tmp_path / "b", WORSE, **{**OPTIONS, "early_stopping_patience": None}).args.load_best_model_at_end
        is False
    )


def test_the_threshold(tmp_path: Path) -> None:
    """The loss falls at every evaluation, but never by so much."""
    run = trainer(tmp_path, [], **{**OPTIONS, "early_stopping_threshold": 10.0})
    run.train()
    assert run.state.global_step == 2 + 3 * 2
    losses = [loss for _, loss in evaluations(run)]
    assert losses == sorted(losses, reverse=True)
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-8"), "the best is the best nevertheless"


RENEWED = [entry("change_lr", 1.0, 1, reevaluate=True) for _ in range(8)]


@pytest.mark.parametrize("own", [True, False], ids=["ours", "of transformers"])
def test_what_shows_an_operation_is_no_evaluation(tmp_path: Path, own: bool) -> None:
    """Eight of them, after which the loss is what it was. It has been the same in two evaluations only."""
    options: dict[str, Any] = {**OPTIONS, "eval_steps": 4, "max_steps": 10, "early_stopping_patience": 3}
    if not own:
        stopping = EarlyStoppingCallback(early_stopping_patience=3)
        options |= {"early_stopping_patience": None, "callbacks": [stopping], "metric_for_best_model": "loss",
                    "load_best_model_at_end": True, "save_strategy": "best", "greater_is_better": False}  # fmt: skip
    run = trainer(tmp_path, RENEWED, learning_rate=0.0, **options)
    run.train()
    assert len(applied(run)) == 8
    assert len(evaluations(run)) > 8
    assert run.state.global_step == 10


def test_a_resume_goes_on_counting(tmp_path: Path) -> None:
    """Also if it evaluates once more because it starts again."""
    options = {**OPTIONS, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 99, "eval_on_start": True}
    whole = trainer(tmp_path / "whole", WORSE, **options)
    whole.train()
    end = whole.state.global_step
    for step in (3, end - 3, end - 1):
        folder = tmp_path / str(step)
        shutil.copytree(tmp_path / "whole", folder)
        for later in range(step + 1, end + 1):
            shutil.rmtree(folder / f"checkpoint-{later}", ignore_errors=True)
        run = trainer(folder, WORSE, **options)
        run.train(True)
        assert run.state.global_step == end, step
        assert same(weights(run), weights(whole)), step


def test_a_run_that_was_stopped_goes_on_only_with_more_patience(tmp_path: Path) -> None:
    options = {**OPTIONS, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 99}
    whole = trainer(tmp_path, WORSE, **options)
    whole.train()
    end = whole.state.global_step
    again = trainer(tmp_path, WORSE, **options)
    again.train(True)
    assert again.state.global_step == end
    assert same(weights(again), weights(whole)), "the best ones are loaded again"
    patient = trainer(tmp_path, WORSE, **{**options, "early_stopping_patience": 5})
    patient.train(True)
    assert patient.state.global_step == end + 4


def test_several_evaluation_sets_go_by_the_first(tmp_path: Path) -> None:
    sets = {"near": Tokens(8, seed=3), "far": Tokens(8, seed=4)}
    args = arguments(tmp_path, **OPTIONS)
    run = MorphingTrainer(tiny_model(), args, train_dataset=Tokens(), eval_dataset=sets, schedule=WORSE)
    run.train()
    scores = [(line["step"], line["eval_near_loss"]) for line in run.state.log_history if "eval_near_loss" in line]
    assert run.state.global_step == min(scores, key=lambda score: score[1])[0] + 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eval_strategy": "no", "eval_steps": None}, "counts evaluations, and this run makes none"),
        ({"early_stopping_patience": 0}, "early_stopping_patience: must be at least 1"),
        ({"early_stopping_threshold": -1.0}, "early_stopping_threshold: must be at least 0"),
    ],
)
def test_bad_values(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, [], **{**OPTIONS, **given})


def test_the_options_can_be_read_again(tmp_path: Path) -> None:
    """What they set does not contradict them."""
    args = arguments(tmp_path, **{**OPTIONS, "save_strategy": "steps", "save_steps": 5})
    again = dataclasses.replace(args)
    assert again.to_dict() == args.to_dict()
    assert again.load_best_model_at_end
