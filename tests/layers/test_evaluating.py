"""Evaluations of real models against plain loops, and against evaluations without all this."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments

from morphing_trainer import MorphingTrainer
from morphing_trainer.data.samples import Continuations, collate
from morphing_trainer.errors import ConfigError
from morphing_trainer.reporting.examples import Example
from morphing_trainer.validation.names import METRICS
from tests.support import DEFAULTS, arguments, losses, pieces, same, weights
from tests.trainer.common import DROPOUT, entry
from tests.validation.common import Packed, Prompted, evaluations, made, model, padded, tokenizer

EVERYTHING = {"eval_metrics": list(METRICS), "eval_example": True, "eval_example_tokens": 6}


def decoded(tokens: Any) -> str:
    return str(tokenizer().decode(tokens)).strip()


def said(tokens: Any) -> str:
    return str(tokenizer().decode(tokens)).replace("<|endoftext|>", " ")


def by_hand(trained: Any, data: Any) -> dict[str, float]:
    """Sample by sample, without a batch."""
    losses, right, words, right_words = [], [], 0, 0
    trained.eval()
    for number in range(len(data)):
        ids, labels = (torch.as_tensor(data[number][key]) for key in ("input_ids", "labels"))
        with torch.no_grad():
            logits = trained(input_ids=ids[None]).logits[0]
        counted = labels[1:] != -100
        truth, scores = labels[1:][counted], logits[:-1][counted]
        losses.append(F.cross_entropy(scores, truth, reduction="none"))
        right.append(scores.argmax(-1) == truth)
        guess = scores.argmax(-1)
        places: dict[int, list[int]] = {}
        for place in range(len(truth)):
            if said(truth[place]).strip():  # the number of words so far says which one a token belongs to
                places.setdefault(len(said(truth[: place + 1]).split()), []).append(place)
        words += len(places)
        right_words += sum(said(truth[at]).strip() == decoded(guess[at]) for at in places.values())
    loss = float(torch.cat(losses).mean())
    return {
        "eval_loss": loss,
        "eval_perplexity": math.exp(loss),
        "eval_token_accuracy": float(torch.cat(right).float().mean()),
        "eval_word_accuracy": right_words / words,
    }


@pytest.mark.parametrize("data", [Prompted(), Packed(), pieces([3, 1, 5])], ids=["prompted", "packed", "continued"])
@pytest.mark.parametrize("batch", [3, 4, 20])
def test_equals_a_plain_loop(tmp_path: Path, data: Any, batch: int) -> None:
    """After training, so that some tokens are predicted right; the last batch is smaller, or the only one."""
    options = {"data_collator": collate} if isinstance(data, Continuations) else {}
    options |= {"max_steps": 40, "eval_steps": 40, "per_device_eval_batch_size": batch}
    trainer = made(tmp_path, data, **options, **EVERYTHING)
    trainer.train()
    found = evaluations(trainer)[-1]
    expected = by_hand(trainer.model, data)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert 0.1 < found["eval_token_accuracy"] < 1
    if not isinstance(data, Continuations):  # whose tokens make no words: each sample is one, and not guessed
        assert 0.05 < found["eval_word_accuracy"] < 1


def test_the_mean_over_samples_would_be_another(tmp_path: Path) -> None:
    """What the test above is for: `Trainer` itself averages over samples."""
    data = Prompted()
    trained = made(tmp_path, data, max_steps=40, eval_strategy="no", eval_steps=None)
    trained.train()
    options: dict[str, Any] = {"per_device_eval_batch_size": 3, "use_cpu": True, "report_to": "none"}
    args = TrainingArguments(str(tmp_path), disable_tqdm=True, **options)
    plain = Trainer(trained.model, args, eval_dataset=data, data_collator=padded)
    assert plain.evaluate()["eval_loss"] != pytest.approx(by_hand(trained.model, data)["eval_loss"], rel=1e-3)


def test_packed_blocks_keep_the_bits_of_trainer(tmp_path: Path) -> None:
    options = {**DEFAULTS, "logging_nan_inf_filter": False, "max_steps": 10, "weight_decay": 0.0}
    plain = Trainer(model(), TrainingArguments(str(tmp_path), **options), train_dataset=Packed(), eval_dataset=Packed())
    plain.train()
    ours = made(tmp_path / "ours", Packed(), max_steps=10, weight_decay=0.0, **EVERYTHING)
    ours.train()
    theirs = [line["eval_loss"] for line in plain.state.log_history if "eval_loss" in line]
    assert [line["eval_loss"] for line in evaluations(ours)] == theirs
    assert len(theirs) == 2


@pytest.mark.parametrize("data", [Prompted(), Packed()], ids=["prompted", "packed"])
def test_training_is_the_same_bits_with_and_without(tmp_path: Path, data: Any) -> None:
    """Dropout draws the same numbers after an evaluation with metrics and example as after one without."""
    start = model(**DROPOUT)
    options = {"max_steps": 12, "eval_steps": 3}
    schedule = [entry("stack_layers", 2, 4, reevaluate=True)]
    bare = made(tmp_path / "bare", data, schedule, start, **options)
    full = made(tmp_path / "full", data, schedule, start, **options, **EVERYTHING)
    states = []
    for trainer in (bare, full):
        torch.manual_seed(5)
        trainer.train()
        states.append(torch.get_rng_state())
    assert same(weights(bare), weights(full))
    assert losses(bare) == losses(full)
    assert [line["eval_loss"] for line in evaluations(bare)] == [line["eval_loss"] for line in evaluations(full)]
    assert torch.equal(*states)
    assert not any("perplexity" in name for line in bare.state.log_history for name in line)


class Examples(TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[tuple[int, Example]] = []

    def on_example(self, args: Any, state: Any, control: Any, example: Example, **kwargs: Any) -> None:
        self.seen.append((state.global_step, example))


def test_every_evaluation_says_it_all(tmp_path: Path) -> None:
    """Metrics also right before and after an operation; an example only where the run has gone on, always the same."""
    watch = Examples()
    schedule = [entry("stack_layers", 2, 4, reevaluate=True)]
    trainer = made(tmp_path, Prompted(), schedule, max_steps=40, eval_steps=20, callbacks=[watch], **EVERYTHING)
    trainer.train()
    steps = [line["step"] for line in evaluations(trainer)]
    assert steps == [4, 4, 20, 40]
    for line in evaluations(trainer):
        assert line["eval_perplexity"] == pytest.approx(math.exp(line["eval_loss"]))
        assert 0 <= line["eval_token_accuracy"] <= 1 and 0 <= line["eval_word_accuracy"] <= 1
    assert [step for step, _ in watch.seen] == [20, 40]
    assert len({(example.prompt, example.truth) for _, example in watch.seen}) == 1
    assert len({example.prediction for _, example in watch.seen}) > 1
    log = (tmp_path / "logs" / "train.log").read_text()
    assert log.count("example, prompt: ") == log.count("example, prediction: ") == len(watch.seen)
    assert "perplexity" in log and "token accuracy" in log and "word accuracy" in log


def test_several_evaluation_sets(tmp_path: Path) -> None:
    watch = Examples()
    sets = {"first": Prompted(5), "second": Packed(3)}
    trainer = made(tmp_path, Prompted(), eval_dataset=sets, max_steps=5, callbacks=[watch], **EVERYTHING)
    trainer.train()
    found = {name for line in trainer.state.log_history for name in line}
    assert {"eval_first_perplexity", "eval_second_word_accuracy"} <= found
    assert [example.name for _, example in watch.seen] == ["first", "second"]


def own(prediction: EvalPrediction) -> dict[str, float]:
    return {"perplexity": 42.0, "shape": float(prediction.predictions.shape[2])}


def test_own_metrics_come_first(tmp_path: Path) -> None:
    """A user's `compute_metrics` sees what it always sees; a name that both have is the user's."""
    trainer = made(tmp_path, Packed(), compute_metrics=own, **EVERYTHING)
    found = trainer.evaluate()
    assert found["eval_perplexity"] == 42.0
    assert found["eval_shape"] == 320
    assert found["eval_token_accuracy"] == pytest.approx(by_hand(model(), Packed())["eval_token_accuracy"])


def test_only_what_was_asked_for(tmp_path: Path) -> None:
    found = made(tmp_path, Packed(), eval_metrics=["token_accuracy"]).evaluate()
    assert {name for name in found if name.removeprefix("eval_") in METRICS} == {"eval_token_accuracy"}


def test_the_best_model_by_a_metric(tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "metric_for_best_model": "token_accuracy", "greater_is_better": True}
    saving = {"save_strategy": "steps", "save_steps": 5, "max_steps": 10}
    trainer = made(tmp_path, Packed(), eval_metrics=["token_accuracy"], **saving, **best)
    trainer.train()
    assert trainer.state.best_metric == max(line["eval_token_accuracy"] for line in evaluations(trainer))


@pytest.mark.parametrize("asked", [{"eval_metrics": ["word_accuracy"]}, {"eval_example": True}])
def test_text_needs_a_tokenizer(tmp_path: Path, asked: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(asked))}.*needs a tokenizer.*processing_class"):
        MorphingTrainer(model(), arguments(tmp_path, **asked), train_dataset=Packed(), eval_dataset=Packed())
    counting = arguments(tmp_path, eval_metrics=["perplexity", "token_accuracy"])
    MorphingTrainer(model(), counting, train_dataset=Packed(), eval_dataset=Packed())


def test_checkpoints_hold_the_tokenizer_and_the_metrics(tmp_path: Path) -> None:
    trainer = made(tmp_path, Packed(), max_steps=5, save_strategy="steps", save_steps=5, **EVERYTHING)
    trainer.train()
    saved = tmp_path / "checkpoint-5"
    assert (saved / "tokenizer.json").is_file()
    history = json.loads((saved / "trainer_state.json").read_text())["log_history"]
    assert any("eval_word_accuracy" in line for line in history)
