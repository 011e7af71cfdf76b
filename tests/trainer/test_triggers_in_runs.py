"""When operations are applied in a real run, and what evaluations have to do with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from morphing_trainer import MorphingTrainer
from morphing_trainer.errors import NotFiniteError
from tests.support import arguments, losses, tiny_model, trainer
from tests.trainer.common import Numbered, applied, entry, evaluations


def test_loss_trigger_fires_at_an_evaluation_and_on_its_raw_loss(tmp_path: Path) -> None:
    probe = trainer(tmp_path / "probe", max_steps=20)
    probe.train()
    seen = evaluations(probe)
    assert [step for step, _ in seen] == [5, 10, 15, 20]
    limit = seen[1][1]  # the loss must be below, so the third evaluation fires, though training losses dip earlier
    assert min(losses(probe)[:15]) < limit
    run = trainer(tmp_path / "run", [entry("freeze_layer", "wpe", trigger_loss=limit)], max_steps=20)
    run.train()
    assert applied(run) == [("freeze_layer", 15)]
    schedule = [entry("freeze_layer", "wpe", trigger_loss=math.nextafter(limit, 9))]
    above = trainer(tmp_path / "above", schedule, max_steps=20)
    above.train()
    assert applied(above) == [("freeze_layer", 10)]


def test_infinite_limit_fires_at_the_first_evaluation_and_one_operation_each(tmp_path: Path) -> None:
    names = ["freeze_layer", "unfreeze_layer", "freeze_layer"]
    run = trainer(tmp_path, [entry(name, "wpe", trigger_loss=math.inf) for name in names])
    run.train()
    assert applied(run) == [("freeze_layer", 5), ("unfreeze_layer", 10)]


class Breaks(TrainerCallback):
    """Makes the model's output NaN after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                model.transformer.ln_f.weight.fill_(math.nan)


def test_a_dead_model_fires_nothing_by_its_loss(tmp_path: Path) -> None:
    schedule = [entry("freeze_layer", "wpe", trigger_loss=math.inf)]
    run = trainer(tmp_path, schedule, callbacks=[Breaks(3)], eval_steps=3)
    with pytest.raises(NotFiniteError, match="step 4: the loss"):
        run.train()
    assert [math.isnan(loss) for _, loss in evaluations(run)] == [True]
    assert applied(run) == []


def test_timeouts_fire_at_their_step(tmp_path: Path) -> None:
    """Not at the next evaluation, and counted from the operation before."""
    schedule = [entry("freeze_layer", "wpe", wait, trigger_loss=0.0) for wait in (3, 1, 4)]
    run = trainer(tmp_path, schedule, max_steps=20)
    run.train()
    assert [step for _, step in applied(run)] == [3, 4, 8]


def test_no_wait_fires_before_the_first_step(tmp_path: Path) -> None:
    run = trainer(tmp_path, [entry("stack_layers", 2, 0), entry("set_lr", 1e-3, 0)])
    run.train()
    assert applied(run) == [("stack_layers", 0), ("set_lr", 1)]


def test_an_operation_due_at_the_last_step_is_not_applied(tmp_path: Path) -> None:
    run = trainer(tmp_path, [entry("stack_layers", 2, 12)])
    run.train()
    assert run.state.global_step == 12
    assert applied(run) == []
    assert run.model.config.n_layer == 2


def test_reevaluation_is_logged_and_fires_nothing(tmp_path: Path) -> None:
    schedule = [
        entry("stack_layers", 2, 2, reevaluate=True),
        entry("freeze_layer", "wpe", trigger_loss=math.inf),
    ]
    run = trainer(tmp_path, schedule)
    run.train()
    # Before it too, because the last evaluation (here: none) was made at another step.
    assert [step for step, _ in evaluations(run)] == [2, 2, 5, 10, 12]
    assert applied(run) == [("stack_layers", 2), ("freeze_layer", 5)]
    first = run._reports.records[0]
    assert (first.before["loss"], first.after["loss"]) == (evaluations(run)[0][1], evaluations(run)[1][1])
    assert first.before["loss"] != first.after["loss"]


class CountsBatches(MorphingTrainer):
    """Counts the batches of every evaluation."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.read: list[int] = []
        super().__init__(*args, **options)

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        self.read.append(0)
        return super().evaluate(*args, **options)

    def prediction_step(self, *args: Any, **options: Any) -> Any:
        self.read[-1] += 1
        return super().prediction_step(*args, **options)


def test_eval_iters_and_interval_change_what_is_done(tmp_path: Path) -> None:
    schedule = [
        entry("change_eval_iters", 2.5, 4),
        entry("change_eval_interval", 0.5, 1),
        entry("set_eval_iters", 1, 4),
        entry("set_eval_interval", 3, 1),
    ]
    args = arguments(tmp_path, eval_iters=2, eval_steps=4, per_device_eval_batch_size=4, max_steps=16)
    data = Numbered(40)
    run = CountsBatches(tiny_model(vocab_size=56), args, train_dataset=data, eval_dataset=data, schedule=schedule)
    run.train()
    assert [step for step, _ in evaluations(run)] == [4, 6, 8, 10, 12, 15, 16]
    assert run.read == [2, 5, 5, 1, 1, 1, 1]


class Counts(TrainerCallback):
    """Counts events, with the step."""

    def __init__(self) -> None:
        self.seen: dict[str, list[int]] = {}

    def _note(self, event: str, step: int) -> None:
        self.seen.setdefault(event, []).append(step)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note("epoch begin", state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note("epoch end", state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note("evaluate", state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note("save", state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self._note("log", state.global_step)


def test_ends_of_segments_are_not_ends_of_epochs(tmp_path: Path) -> None:
    counts = Counts()
    schedule = [
        entry("freeze_layer", "wpe", 2),
        entry("set_batch_size", 8, 3),
        entry("stack_layers", 2, 1),
        entry("set_batch_size", 4, trigger_loss=math.inf),
    ]
    by_epoch = dict.fromkeys(("eval_strategy", "save_strategy", "logging_strategy"), "epoch")
    run = trainer(tmp_path, schedule, max_steps=-1, num_train_epochs=3, callbacks=[counts], **by_epoch)
    run.train()
    # 101 samples: 5 steps of 4 and 11 of 8 (81 left); then 26 and 26 of 4.
    assert [step for _, step in applied(run)] == [2, 5, 6, 16]
    assert counts.seen["epoch begin"] == [0, 16, 42]
    for event in ("epoch end", "evaluate", "save", "log"):
        assert counts.seen[event] == [16, 42, 68], event


@pytest.mark.parametrize("steps", [5, 7])
def test_saving_logging_and_evaluating_by_steps_go_on_through_morphs(tmp_path: Path, steps: int) -> None:
    counts = Counts()
    schedule = [entry("stack_layers", 2, 5), entry("freeze_layer", "wpe", 2)]
    every = dict.fromkeys(("eval_steps", "save_steps", "logging_steps"), steps)
    run = trainer(tmp_path, schedule, max_steps=20, save_strategy="steps", callbacks=[counts], **every)
    run.train()
    expected = [*range(steps, 21, steps)]
    assert counts.seen["log"] == expected
    for event in ("evaluate", "save"):
        assert counts.seen[event] == (expected if expected[-1] == 20 else [*expected, 20])
