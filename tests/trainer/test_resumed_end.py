"""A run that is killed at its own end, or at the end of an epoch, still does what its last step owes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from morphing_trainer import MorphingTrainer
from morphing_trainer.checkpoint.store import checkpoints
from morphing_trainer.run.history import read_history
from morphing_trainer.run.journal import effective, read_journal
from morphing_trainer.run.reading import read_run
from tests.support import Tokens, same, tiny_model, trainer, weights
from tests.trainer.common import DROPOUT, entry, optimizer_state
from tests.trainer.program import Job, complete, killed_repeatedly

# 12 steps of 4 samples are 3 epochs of 16 samples; 10 steps end within the third.
RUN: dict[str, Any] = {
    "max_steps": 12,
    "save_strategy": "steps",
    "save_steps": 1,
    "eval_strategy": "epoch",
    "logging_strategy": "epoch",
    "save_total_limit": 100,
    "lr_scheduler_type": "cosine",
    "log_memory": False,
}
GROWS = [entry("widen_mlp", 1.5, 3)]
TIMED = ("runtime", "per_second", "seconds")
PROCESS = ("resume", "failed", "start", "override")
"""Events that tell of the process, not of what became of the model."""


class Killed(BaseException):
    """As sudden as an exception can be."""


class Dies(TrainerCallback):
    """Ends the run when the checkpoint of a step is there, or at a later moment."""

    def __init__(self, step: int, moment: str = "save") -> None:
        self.step, self.moment = step, moment

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.moment == "save" and state.global_step == self.step:
            raise Killed

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.moment == "evaluation" and state.global_step == self.step:
            raise Killed

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.moment == "end":
            raise Killed


def make(folder: Path, schedule: Any = (), **changes: Any) -> MorphingTrainer:
    options = {"data": Tokens(16), **RUN, **changes}
    return trainer(folder, list(schedule), tiny_model(**DROPOUT), **options)


def lines(run: MorphingTrainer) -> list[dict[str, Any]]:
    """The log, without what the clock decides."""
    return [{k: v for k, v in line.items() if not k.endswith(TIMED)} for line in run.state.log_history]


def journal(folder: Path) -> list[dict[str, Any]]:
    """What became of the model, without what the clock decides."""
    found = []
    for event in effective(read_journal(folder / "journal.jsonl")):
        if event["event"] not in PROCESS:
            record = {k: v for k, v in event.get("record", {}).items() if k != "seconds"}
            found.append({k: v for k, v in event.items() if k not in ("time", "record", "events")} | {"record": record})
    return found


def drawn(folder: Path) -> list[dict[str, Any]]:
    """What `morph plot` sees."""
    data = read_run(folder)
    return [{k: v for k, v in line.items() if not k.endswith(TIMED)} for line in data.lines]


def assert_same_end(resumed: MorphingTrainer, whole: MorphingTrainer) -> None:
    assert lines(resumed) == lines(whole)
    assert journal(resumed.run_folder) == journal(whole.run_folder)
    assert drawn(resumed.run_folder) == drawn(whole.run_folder)
    assert same(weights(resumed), weights(whole))
    assert same(optimizer_state(resumed), optimizer_state(whole))


def killed_and_resumed(folder: Path, dies: Dies, schedule: Any = (), **changes: Any) -> tuple[MorphingTrainer, Any]:
    with pytest.raises(Killed):
        make(folder, schedule, callbacks=[dies], **changes).train()
    assert checkpoints(folder)[0].name == f"checkpoint-{dies.step}"
    resumed = make(folder, schedule, **changes)
    return resumed, resumed.train(True)


MOMENTS = [
    (end, step, moment) for end, step in ((12, 12), (10, 10), (12, 8), (12, 4)) for moment in ("save", "evaluation")
]


@pytest.mark.parametrize(("max_steps", "step", "moment"), [*MOMENTS, (12, 12, "end"), (10, 10, "end")])
def test_killed_between_save_and_evaluation(tmp_path: Path, max_steps: int, step: int, moment: str) -> None:
    """The step is saved, and only then, at the end of its epoch, logged and evaluated."""
    whole = make(tmp_path / "whole", GROWS, max_steps=max_steps)
    output = whole.train()
    assert [line["step"] for line in lines(whole) if "eval_loss" in line] == [4, 8, max_steps]
    resumed, again = killed_and_resumed(tmp_path / "run", Dies(step, moment), GROWS, max_steps=max_steps)
    assert_same_end(resumed, whole)
    assert again.training_loss == output.training_loss == again.metrics["train_loss"]
    assert {k: v for k, v in again.metrics.items() if not k.endswith(TIMED)} == {
        k: v for k, v in output.metrics.items() if not k.endswith(TIMED)
    }


@pytest.mark.parametrize("strategy", ["steps", "epoch", "no"])
def test_killed_after_everything(tmp_path: Path, strategy: str) -> None:
    """What the last step has done is not done again."""
    saves = {"save_strategy": strategy if strategy != "no" else "steps", "logging_strategy": "steps"}
    options = {"eval_strategy": strategy, "eval_steps": 5, "save_steps": 4, **saves}
    whole = make(tmp_path / "whole", GROWS, **options)
    output = whole.train()
    resumed, again = killed_and_resumed(tmp_path / "run", Dies(12, "end"), GROWS, **options)
    assert_same_end(resumed, whole)
    assert again.training_loss == output.training_loss


def test_killed_twice_at_the_end(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", GROWS)
    whole.train()
    with pytest.raises(Killed):
        make(tmp_path / "run", GROWS, callbacks=[Dies(12, "evaluation")]).train()
    with pytest.raises(Killed):
        make(tmp_path / "run", GROWS, callbacks=[Dies(12, "evaluation")]).train(True)
    resumed = make(tmp_path / "run", GROWS)
    resumed.train(True)
    assert_same_end(resumed, whole)


@pytest.mark.parametrize("strategy", ["steps", "epoch", "no"])
@pytest.mark.parametrize("well", [True, False])
def test_resumed_where_it_now_ends_with_a_guard_open(tmp_path: Path, strategy: str, well: bool) -> None:
    """Told to end at the step that it stands at, a run judges what it would have judged by going on."""
    guard = {"max_loss_increase": 100.0 if well else 0.0, "within_steps": 8}
    schedule = [entry("change_lr", 100.0, 3, guard=guard)]
    options = {"eval_strategy": strategy, "lr_scheduler_type": "constant", "eval_steps": 100, "logging_steps": 1}
    options |= {"logging_strategy": "steps"}
    whole = make(tmp_path / "whole", schedule, max_steps=6, **options)
    whole.train()
    with pytest.raises(Killed):
        make(tmp_path / "run", schedule, max_steps=12, callbacks=[Dies(6)], **options).train()
    resumed = make(tmp_path / "run", schedule, max_steps=6, **options)
    resumed.train(True)
    assert lines(resumed) == lines(whole)
    told = [(event["event"], event["step"]) for event in journal(resumed.run_folder)]
    assert told == [(event["event"], event["step"]) for event in journal(whole.run_folder)]
    closed = 4 if strategy == "epoch" else 6
    assert ("guard_closed", closed) in told if well else ("rolled_back", 3) in told
    assert same(weights(resumed), weights(whole))


def test_the_evaluation_of_the_new_last_step(tmp_path: Path) -> None:
    """A run by steps evaluates its last one, whatever the interval; and saves it with what came of that."""
    options = {"eval_strategy": "steps", "eval_steps": 5, "logging_strategy": "steps", "metric_for_best_model": "loss"}
    options |= {"lr_scheduler_type": "constant", "save_steps": 5}
    whole = make(tmp_path / "whole", max_steps=6, **options, load_best_model_at_end=True)
    whole.train()
    with pytest.raises(Killed):
        make(tmp_path / "run", max_steps=12, callbacks=[Dies(6)], **{**options, "save_steps": 1}).train()
    resumed = make(tmp_path / "run", max_steps=6, **options, load_best_model_at_end=True)
    resumed.train(True)
    assert lines(resumed) == lines(whole)
    assert os.path.basename(str(resumed.state.best_model_checkpoint)) == "checkpoint-6"
    saved = read_history(tmp_path / "run" / "stats" / "history.jsonl")
    assert [line["step"] for line in saved if "eval_loss" in line] == [5, 6]


@pytest.mark.parametrize("beside", [False, True])
def test_killed_in_processes(tmp_path: Path, beside: bool) -> None:
    """SIGKILL at any moment of a run that goes back by itself: its log and its journal are those of the one that was
    let alone, whatever they noted in between."""
    schedule = [
        entry("change_lr", 2000.0, 5, guard={"max_loss_increase": 0.2, "within_steps": 6}),
        entry("widen_mlp", 1.5, 4),
    ]
    options = {"max_steps": 20, "save_strategy": "steps", "save_steps": 2, "logging_steps": 3, "eval_steps": 4}
    options |= {"log_memory": False, "async_save": beside, "save_total_limit": 2}
    whole = complete(Job(tmp_path / "whole", schedule, dropout=0.1, options=options))
    killed = Job(tmp_path / "killed", schedule, resume="if possible", dropout=0.1, pause=0.03, options=options)
    killed_repeatedly(killed, [0.1, 0.2, 0.05, 0.3, 0.0])
    complete(killed)
    assert journal(killed.folder) == journal(whole.folder)
    assert [event["event"] for event in journal(killed.folder)].count("rolled_back") == 1
    assert drawn(killed.folder) == drawn(whole.folder)
    assert same(killed.weights(), whole.weights())
