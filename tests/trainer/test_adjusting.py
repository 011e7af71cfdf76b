"""`adjust_batch_size`: it changes the batch and nothing else, and what it measured is never measured again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from morphing_trainer import MorphingTrainer
from morphing_trainer.errors import OperationError
from morphing_trainer.run.journal import read_journal
from tests.memory.test_finding import Linear
from tests.support import Tokens, arguments, losses, same, tiny_model, trainer, weights
from tests.trainer.common import DROPOUT, applied, entry, optimizer_state
from tests.trainer.program import Job, RunsOut, complete

RUN = {
    "max_steps": 9,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 100,
    "lr_scheduler_type": "cosine",
}


def make(folder: Path, schedule: Any, **changes: Any) -> MorphingTrainer:
    return trainer(folder, schedule, tiny_model(**DROPOUT), data=Tokens(301), **{**RUN, **changes})


def adjust(value: Any = None, wait: int = 3, **options: Any) -> dict[str, Any]:
    return entry("adjust_batch_size", value, wait, **options)


def record(run: MorphingTrainer) -> dict[str, Any]:
    events = read_journal(run.run_folder / "journal.jsonl")
    (found,) = [event["record"] for event in events if event["event"] == "operation"]
    return found


class Synthetic(MorphingTrainer):
    """Measures by a formula."""

    memory: Linear | None = None

    def _probe(self) -> Any:
        assert self.memory is not None, "measured, though it should not have been"
        return self.memory


def synthetic(folder: Path, memory: Linear | None, schedule: Any, **changes: Any) -> Synthetic:
    options = {**RUN, "eval_strategy": "no", "eval_steps": None, **changes}
    run = Synthetic(tiny_model(**DROPOUT), arguments(folder, **options), train_dataset=Tokens(301), schedule=schedule)
    run.memory = memory
    return run


@pytest.mark.parametrize("accumulation", [1, 3])
def test_only_the_batch_changes(tmp_path: Path, accumulation: int) -> None:
    """To the bit as by `set_batch_size`, with dropout, which would draw other numbers if a trial had drawn any."""
    options = {"gradient_accumulation_steps": accumulation}
    adjusted = make(tmp_path / "adjusted", [adjust({"max_batch_size": 16})], **options)
    adjusted.train()
    expected = make(tmp_path / "set", [entry("set_batch_size", 16, 3)], **options)
    expected.train()
    assert same(weights(adjusted), weights(expected))
    assert same(optimizer_state(adjusted), optimizer_state(expected))
    assert losses(adjusted) == losses(expected)
    assert (adjusted.args.per_device_train_batch_size, adjusted.args.gradient_accumulation_steps) == (16, accumulation)
    assert applied(adjusted) == [("adjust_batch_size", 3)]


def test_before_the_first_step(tmp_path: Path) -> None:
    adjusted = make(tmp_path / "adjusted", [adjust({"max_batch_size": 24}, 0)])
    adjusted.train()
    expected = make(tmp_path / "set", [entry("set_batch_size", 24, 0)])
    expected.train()
    assert same(weights(adjusted), weights(expected))
    assert adjusted.args.per_device_train_batch_size == 24


def test_the_effective_batch_can_be_kept(tmp_path: Path) -> None:
    """4 times 6 samples: 16 would not divide them, so the last micro-batch of a step has 8."""
    run = make(tmp_path, [adjust({"max_batch_size": 16}, keep_effective=True)], gradient_accumulation_steps=6)
    run.train()
    assert (run.args.per_device_train_batch_size, run.args.gradient_accumulation_steps) == (16, 2)
    assert run.session is not None
    assert run.session.state.settings.step_samples == 24
    assert run.session.state.totals["train"].samples == 9 * 24


@pytest.mark.parametrize(
    ("memory", "value", "batch"),
    [
        (Linear(10, 1), None, 64),
        (Linear(10, 1), {"target_vram_percent": 50}, 32),
        (Linear(10, 1, end=45), {"target_vram_percent": 100}, 32),
        (Linear(10, 0.1, samples=301), {"max_batch_size": 300}, 256),
    ],
)
def test_the_target_is_respected(tmp_path: Path, memory: Linear, value: Any, batch: int) -> None:
    run = synthetic(tmp_path, memory, [adjust(value)])
    run.train()
    assert run.args.per_device_train_batch_size == batch
    target = (value or {}).get("target_vram_percent", 82)
    percent = memory.fixed + memory.each * batch
    assert percent <= target
    assert record(run)["note"] == f"measured: a batch of {batch} takes {percent:g} % of memory (target {target} %)"
    assert (record(run)["before"]["batch_size"], record(run)["after"]["batch_size"]) == (4, batch)


@pytest.mark.parametrize("keep", [False, True])
def test_a_resume_takes_over_what_was_measured(tmp_path: Path, keep: bool) -> None:
    schedule = [adjust(keep_effective=keep), entry("change_batch_size", 0.5, 3)]
    options = {"gradient_accumulation_steps": 32}
    whole = synthetic(tmp_path / "whole", Linear(10, 3), schedule, **options)
    whole.train()
    assert whole.args.per_device_train_batch_size == 12
    for step in (4, 6, 7):
        resumed = synthetic(tmp_path / f"from-{step}", None, schedule, **options)
        resumed.train(str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert same(weights(resumed), weights(whole))
        assert resumed.session is not None and whole.session is not None
        assert resumed.session.state.settings == whole.session.state.settings
        assert resumed.session.state.executed == whole.session.state.executed
    measured = resumed.session.state.executed[0]["measured"]
    assert measured == {"batch_size": 24, "memory_percent": 82.0}


def test_resumed_from_before_it_measures(tmp_path: Path) -> None:
    make(tmp_path / "whole", [adjust({"max_batch_size": 16})]).train()
    resumed = make(tmp_path / "resumed", [adjust({"max_batch_size": 16})])
    resumed.train(str(tmp_path / "whole" / "checkpoint-3"))
    assert resumed.args.per_device_train_batch_size == 16


def test_a_resume_with_another_batch_at_the_start(tmp_path: Path) -> None:
    """What was measured stands; with the effective batch kept, the accumulation follows the new one."""
    schedule = [adjust(keep_effective=True)]
    synthetic(tmp_path / "whole", Linear(10, 3), schedule, gradient_accumulation_steps=12).train()
    resumed = synthetic(tmp_path / "resumed", None, schedule, gradient_accumulation_steps=18)
    resumed.train(str(tmp_path / "whole" / "checkpoint-5"))
    assert (resumed.args.per_device_train_batch_size, resumed.args.gradient_accumulation_steps) == (24, 3)


def test_where_nothing_fits_nothing_changes(tmp_path: Path) -> None:
    run = synthetic(tmp_path, Linear(90, 1), [adjust()])
    with pytest.raises(OperationError, match="not even a batch of 8 fits: it takes 98 % of memory"):
        run.train()
    assert run.session is not None
    assert run.args.per_device_train_batch_size == 4
    assert run.session.state.executed == []
    before = synthetic(tmp_path / "three", None, [], max_steps=9)
    before.train()
    stopped = synthetic(tmp_path / "again", None, [])
    stopped.train(str(tmp_path / "checkpoint-3"))
    assert same(weights(stopped), weights(before))


def test_a_trial_that_runs_out_of_memory_is_a_batch_that_does_not_fit(tmp_path: Path) -> None:
    model = tiny_model(**DROPOUT)
    model.transformer.h[-1].mlp.register_forward_pre_hook(RunsOut(30))
    run = trainer(tmp_path / "run", [adjust({"max_batch_size": 64})], model, data=Tokens(301), **RUN)
    run.train()
    expected = make(tmp_path / "set", [entry("set_batch_size", 24, 3)])
    expected.train()
    assert same(weights(run), weights(expected))
    events = read_journal(tmp_path / "run" / "journal.jsonl")
    assert not [event for event in events if event["event"] == "out_of_memory"]


def test_the_plan_says_that_it_will_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(tmp_path, [adjust(), entry("change_lr", 0.5, 1)], max_steps=1)
    assert [phase.settings.batch_size for phase in run.plan] == [4, 4, 4]
    assert [phase.measures for phase in run.plan] == [False, True, False]
    run.train()
    line = next(line for line in capsys.readouterr().out.splitlines() if "adjust_batch_size" in line)
    assert "batch as measured then" in line


@pytest.mark.parametrize("fails", [None, (1, "trial")], ids=["alike", "one has less memory"])
def test_all_ranks_get_the_smallest(tmp_path: Path, fails: Any) -> None:
    """Rank 1 runs out of memory above 8 samples, rank 0 does not. The trials leave no gradient for a step to reduce."""
    options = {"max_steps": 5, "dataloader_drop_last": False}
    job = Job(
        tmp_path / "run", [adjust({"max_batch_size": 16}, 2)], samples=101, dropout=0.1, fails=fails, options=options
    )
    complete(job, 2)
    batch = 8 if fails else 16
    assert same(job.weights(0), job.weights(1))
    events = read_journal(job.folder / "journal.jsonl")
    (found,) = [event["record"] for event in events if event["event"] == "operation"]
    assert found["after"]["batch_size"] == batch
    expected = Job(tmp_path / "set", [entry("set_batch_size", batch, 2)], samples=101, dropout=0.1, options=options)
    complete(expected, 2)
    assert same(job.weights(), expected.weights())
