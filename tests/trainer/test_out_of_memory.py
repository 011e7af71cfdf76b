"""A step that runs out of memory is repeated in smaller batches, as if it had been begun so."""

from __future__ import annotations

import logging
import resource
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn
from transformers import GPT2LMHeadModel, TrainerCallback

from morphing_trainer import MorphingTrainer
from morphing_trainer.checkpoint.store import checkpoints
from morphing_trainer.errors import OutOfMemoryError
from morphing_trainer.memory.failures import is_out_of_memory
from morphing_trainer.run.journal import read_journal
from morphing_trainer.run.statistics import Totals
from tests.support import Tokens, losses, same, tiny_model, trainer, weights
from tests.trainer.common import DROPOUT, entry, ledger, optimizer_state, rates
from tests.trainer.program import OUT_OF_MEMORY, Job, RunsOut, finish, server, start

CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "8 bytes. Error code 12 (Cannot allocate memory)"
)
WINDOWS = RuntimeError("[enforce fail] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.")


def limited(hook: RunsOut | None) -> GPT2LMHeadModel:
    model = tiny_model(**DROPOUT)
    if hook is not None:
        model.transformer.h[-1].mlp.register_forward_pre_hook(hook)
    return model


class Limits(TrainerCallback):
    """Puts the hook on a model that a resume has rebuilt."""

    def __init__(self, hook: RunsOut) -> None:
        self.hook = hook

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.transformer.h[-1].mlp.register_forward_pre_hook(self.hook)


RUN = {
    "max_steps": 9,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 100,
    "lr_scheduler_type": "cosine",
}


def make(folder: Path, hook: RunsOut | None = None, schedule: Any = None, **changes: Any) -> MorphingTrainer:
    options = {**RUN, "per_device_train_batch_size": 8, "data": Tokens(75), **changes}
    return trainer(folder, schedule, limited(hook), **options)


def events(run: MorphingTrainer, name: str) -> list[dict[str, Any]]:
    return [event for event in read_journal(run.run_folder / "journal.jsonl") if event["event"] == name]


def totals(run: MorphingTrainer) -> Totals:
    assert run.session is not None
    run.session.count_losses()
    return run.session.state.totals["train"]


def assert_same(left: MorphingTrainer, right: MorphingTrainer) -> None:
    assert same(weights(left), weights(right))
    assert same(optimizer_state(left), optimizer_state(right))
    assert rates(left)[-3:] == rates(right)[-3:]
    assert left.state.global_step == right.state.global_step


@pytest.mark.parametrize(
    "error", [OUT_OF_MEMORY, CPU, WINDOWS, MemoryError()], ids=["cuda", "cpu", "windows", "python"]
)
@pytest.mark.parametrize(("accumulation", "after"), [(1, 4), (2, 8), (2, 9)], ids=["whole", "first part", "last part"])
def test_the_run_ends_as_one_with_half_the_batch_from_that_step_on(
    tmp_path: Path, error: Exception, accumulation: int, after: int
) -> None:
    """To the bit, with dropout, whether the first or a later micro-batch of step 5 fails."""
    options = {"gradient_accumulation_steps": accumulation, "data": Tokens(99)}
    options |= {"include_num_input_tokens_seen": "all"}
    found = make(tmp_path / "found", RunsOut(4, after, error), **options)
    found.train()
    (event,) = events(found, "out_of_memory")
    assert event["step"] == 4
    assert event["before"] == {"batch_size": 8, "grad_accum": accumulation, "step_samples": None}
    assert event["after"] == {"batch_size": 4, "grad_accum": 2 * accumulation, "step_samples": None}
    assert type(error).__name__ in event["reason"]
    whole = make(tmp_path / "whole", **options)
    whole.train()
    halved = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2 * accumulation}
    expected = make(tmp_path / "expected", **{**options, **halved})
    expected.train(str(tmp_path / "whole" / "checkpoint-4"))
    assert_same(found, expected)
    assert losses(found) == losses(expected)
    assert found.state.total_flos == expected.state.total_flos
    assert found.state.num_input_tokens_seen == expected.state.num_input_tokens_seen
    assert not same(weights(found), weights(whole)), "other masks of dropout: the comparison would notice"


def test_losses_count_once(tmp_path: Path) -> None:
    """Logged every 3 steps, so that the failed attempt lies within a sum. Without dropout, to rounding."""
    plain = trainer(tmp_path / "plain", None, tiny_model(), logging_steps=3, per_device_train_batch_size=8)
    plain.train()
    model = tiny_model()
    model.transformer.h[-1].mlp.register_forward_pre_hook(RunsOut(4, 4))
    found = trainer(tmp_path / "found", None, model, logging_steps=3, per_device_train_batch_size=8)
    found.train()
    assert events(found, "out_of_memory")
    assert losses(found) == pytest.approx(losses(plain), rel=1e-5)
    assert found.state.total_flos == plain.state.total_flos
    assert found.state.log_history[-1]["train_loss"] == pytest.approx(
        plain.state.log_history[-1]["train_loss"], rel=1e-5
    )
    ours, theirs = (totals(run) for run in (found, plain))
    assert (ours.steps, ours.samples, ours.tokens, ours.loss_tokens) == (
        theirs.steps,
        theirs.samples,
        theirs.tokens,
        theirs.loss_tokens,
    )
    assert ours.loss_sum == pytest.approx(theirs.loss_sum, rel=1e-5)


def test_no_sample_is_lost_or_seen_twice(tmp_path: Path) -> None:
    """Over the end of an epoch, through odd batches: 11 samples, then 5 + 5 + 1, then 2 ... of the same 11."""

    run = ledger(tmp_path, 40, per_device_train_batch_size=11, max_steps=8)
    run.model.transformer.h[-1].mlp.register_forward_pre_hook(RunsOut(2, 2))
    run.train()
    assert [event["after"]["batch_size"] for event in events(run, "out_of_memory")] == [5, 2]
    done: dict[int, list[int]] = {}
    for step, batch in run.trained:
        done.setdefault(step, []).append(batch)  # the last attempt of a step is the one that counts
    sizes = {step: [len(batch) for batch in batches] for step, batches in done.items()}
    assert sizes[2] == [11]
    assert sizes[3][-6:] == [2, 2, 2, 2, 2, 1]
    assert sizes[4] == [2, 2, 2, 1], "what is left of the epoch"
    assert sizes[5] == [2, 2, 2, 2, 2, 1]
    first = [number for step in (1, 2) for batch in done[step] for number in batch]
    first += [number for batch in done[3][-6:] for number in batch] + [number for batch in done[4] for number in batch]
    assert sorted(first) == list(range(40))


def test_halved_as_often_as_needed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = make(tmp_path, RunsOut(1, 3))
    with caplog.at_level(logging.WARNING):
        run.train()
    found = events(run, "out_of_memory")
    assert [event["after"]["batch_size"] for event in found] == [4, 2, 1]
    assert [event["after"]["grad_accum"] for event in found] == [2, 4, 8]
    assert {event["step"] for event in found} == {3}
    assert run.state.global_step == 9
    said = [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]
    assert said[0].startswith("step 4: out of memory (OutOfMemoryError: CUDA out of memory.")
    assert "Repeated with 4 samples per device (before: 8), accumulation 2 (1)" in said[0]
    assert (run.args.per_device_train_batch_size, run.args.gradient_accumulation_steps) == (1, 8)


def test_at_the_first_step_of_the_run_and_of_an_epoch(tmp_path: Path) -> None:
    """There the loader draws a random number of its own, which must be drawn again."""
    halved = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 13}
    make(tmp_path / "whole", max_steps=13).train()
    for step, begin in ((0, None), (10, str(tmp_path / "whole" / "checkpoint-10"))):  # 75 samples are 10 batches
        found = make(tmp_path / f"found-{step}", RunsOut(4, step), max_steps=13)
        found.train()
        assert [event["step"] for event in events(found, "out_of_memory")] == [step]
        expected = make(tmp_path / f"expected-{step}", **halved)
        expected.train(begin)
        assert_same(found, expected)


class TestResume:
    """A run that has halved its batch is taken up with it."""

    SCHEDULE = (entry("change_lr", 0.5, 2), entry("change_grad_accum", 2, 4), entry("stack_layers", 2, 1))

    @pytest.mark.parametrize("step", [4, 5, 7, 8])
    def test_is_exact(self, tmp_path: Path, step: int) -> None:
        """From before the halving as well: memory runs out again there."""
        whole = make(tmp_path / "whole", RunsOut(4, 4), self.SCHEDULE)
        whole.train()
        resumed = make(tmp_path / "resumed", None, self.SCHEDULE, callbacks=[Limits(RunsOut(4))])
        resumed.train(str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert_same(resumed, whole)
        assert resumed.args.per_device_train_batch_size == 4
        assert resumed.args.gradient_accumulation_steps == 4

    def test_another_learning_rate_leaves_the_batch(self, tmp_path: Path) -> None:
        make(tmp_path / "run", RunsOut(4, 4)).train()
        resumed = make(tmp_path / "resumed", learning_rate=1e-3)
        resumed.train(str(tmp_path / "run" / "checkpoint-6"))
        assert (resumed.args.per_device_train_batch_size, resumed.args.gradient_accumulation_steps) == (4, 2)

    def test_another_batch_counts(self, tmp_path: Path) -> None:
        make(tmp_path / "run", RunsOut(4, 4)).train()
        resumed = make(tmp_path / "resumed", per_device_train_batch_size=6)
        resumed.train(str(tmp_path / "run" / "checkpoint-6"))
        assert (resumed.args.per_device_train_batch_size, resumed.args.gradient_accumulation_steps) == (6, 1)

    def test_a_batch_that_the_schedule_sets_counts(self, tmp_path: Path) -> None:
        run = make(tmp_path / "run", RunsOut(4, 2), [entry("set_batch_size", 3, 5)])
        run.train()
        assert run.args.per_device_train_batch_size == 3
        resumed = make(tmp_path / "resumed", None, [entry("set_batch_size", 3, 5)])
        resumed.train(str(tmp_path / "run" / "checkpoint-7"))
        assert_same(resumed, run)


class TestTheEnd:
    """One sample does not fit."""

    def test_the_step_before_is_saved(self, tmp_path: Path) -> None:
        run = make(tmp_path / "run", RunsOut(0, 5), save_strategy="no")
        with pytest.raises(OutOfMemoryError, match=r"step 6 even with one sample.*Checkpoint-5 is saved"):
            run.train()
        assert [path.name for path in checkpoints(run.run_folder)] == ["checkpoint-5"]
        (event,) = events(run, "emergency")
        assert (event["step"], event["checkpoint"]) == (5, "checkpoint-5")
        whole = make(tmp_path / "whole")
        whole.train()
        resumed = make(tmp_path / "run", per_device_train_batch_size=8)
        resumed.train(True)
        # It has halved its batch three times on the way, which a resume keeps: give another to go back.
        assert resumed.args.per_device_train_batch_size == 1
        assert resumed.state.global_step == 9
        expected = make(tmp_path / "one", per_device_train_batch_size=1, gradient_accumulation_steps=8)
        expected.train(str(tmp_path / "whole" / "checkpoint-5"))
        assert_same(resumed, expected)

    def test_what_is_saved_already_is_not_saved_again(self, tmp_path: Path) -> None:
        run = make(tmp_path, RunsOut(0, 5))
        saved: list[float] = []

        class Notes(TrainerCallback):
            def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                saved.append(state.global_step)

        run.add_callback(Notes())
        with pytest.raises(OutOfMemoryError, match="Checkpoint-5 is saved"):
            run.train()
        assert saved == [1, 2, 3, 4, 5]

    def test_at_the_first_step_there_is_nothing_to_save(self, tmp_path: Path) -> None:
        run = make(tmp_path, RunsOut(0))
        with pytest.raises(OutOfMemoryError, match=r"step 1 even with one sample.*Nothing had been trained yet"):
            run.train()
        assert checkpoints(run.run_folder) == []

    def test_in_an_evaluation(self, tmp_path: Path) -> None:
        model = tiny_model()

        def hook(module: nn.Module, inputs: Any) -> None:
            if not module.training:
                raise OUT_OF_MEMORY

        model.transformer.h[-1].mlp.register_forward_pre_hook(hook)
        run = trainer(tmp_path, None, model)
        with pytest.raises(OutOfMemoryError, match=r"after step 5, in an evaluation.*lower per_device_eval_batch_size"):
            run.train()

    def test_in_the_optimizer(self, tmp_path: Path) -> None:
        class Fails(torch.optim.SGD):
            def step(self, closure: Any = None) -> None:  # type: ignore[override]
                raise OUT_OF_MEMORY

        model = tiny_model()
        run = trainer(tmp_path, None, model)
        run.optimizer = Fails(run.model.parameters(), lr=0.1)
        with pytest.raises(OutOfMemoryError, match=r"in the optimizer's step 1.*nothing is saved"):
            run.train()

    def test_other_errors_are_left_alone(self, tmp_path: Path) -> None:
        run = make(tmp_path, RunsOut(0, 2, RuntimeError("shape '[2]' is invalid")))
        with pytest.raises(RuntimeError, match="is invalid"):
            run.train()
        assert not events(run, "out_of_memory")


@pytest.mark.parametrize("rank", [0, 1])
def test_with_several_processes_all_stop_and_say_why(tmp_path: Path, rank: int) -> None:
    """The other one waits in its backward pass. Rank 0 holds the store in which the reason is left."""
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "save_strategy": "steps"}
    job = Job(tmp_path / "run", [], fails=(rank, "step"), options={**options, "save_steps": 1})
    assert finish(start(job, 2), seconds=90) == [1, 1]
    own, other = ((job.results / f"{each}.log").read_text() for each in (rank, 1 - rank))
    assert "out of memory in step 4 with 2 samples per device (OutOfMemoryError: CUDA out of memory." in own
    assert "smaller per_device_train_batch_size (1)" in own
    assert "or let adjust_batch_size measure what fits" in own
    assert f"RankError: rank {rank} failed, so all ranks stop: out of memory in step 4" in other
    assert "not all others have heard" not in own + other, "the connections close at once"
    assert [path.name for path in checkpoints(job.folder)] == ["checkpoint-3", "checkpoint-2", "checkpoint-1"]


class Fence(TrainerCallback):
    """After the second step the process may take `room` more bytes of address space, and no more."""

    def __init__(self, room: int) -> None:
        self.room = room

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            size = psutil.Process().memory_info().vms
            resource.setrlimit(resource.RLIMIT_AS, (size + self.room, resource.RLIM_INFINITY))


def fenced(folder: Path) -> None:
    """In a process of its own: batches of 512 samples come at step 4 and take some 500 MiB; there are 200."""
    torch.set_num_threads(1)
    model = tiny_model(n_embd=64, n_positions=128)
    options = {"data": Tokens(4096, length=128), "eval_strategy": "no", "eval_steps": None, "max_steps": 5}
    trainer(folder, [entry("set_batch_size", 512, 3)], model, callbacks=[Fence(200 * 2**20)], **options).train()


@pytest.mark.skipif(sys.platform != "linux", reason="the limit works on Linux")
def test_real_memory_runs_out(tmp_path: Path) -> None:
    process = server().Process(target=fenced, args=(tmp_path / "run",))
    process.start()
    assert finish([process], 100) == [0]
    found = [event for event in read_journal(tmp_path / "run" / "journal.jsonl") if event["event"] == "out_of_memory"]
    assert [event["step"] for event in found] == [3] * len(found)
    assert [event["after"]["batch_size"] for event in found] == [256, 128, 64, 32][: len(found)]
    assert 1 <= len(found) <= 4
    assert "DefaultCPUAllocator" in found[0]["reason"]


def test_what_is_out_of_memory() -> None:
    assert all(
        map(is_out_of_memory, (OUT_OF_MEMORY, CPU, WINDOWS, MemoryError(), RuntimeError("CUDA error: out of memory")))
    )
    for other in (RuntimeError("expected scalar type Float"), ValueError("CUDA out of memory."), OSError("no memory")):
        assert not is_out_of_memory(other)
