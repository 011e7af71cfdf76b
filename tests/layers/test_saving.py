"""Checkpoints that are written beside the training: the same files, the same promises."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments

from morphing_trainer import LoraArguments, MorphingTrainer, add_adapters
from morphing_trainer.checkpoint import checkpoints, verify
from morphing_trainer.errors import CheckpointError, StorageError
from morphing_trainer.layers import beside, saving
from morphing_trainer.memory.system import Amount
from morphing_trainer.run.background import Background
from morphing_trainer.run.bundle import REQUIRED
from morphing_trainer.run.snapshot import Copier, Snapshot, write
from tests.support import DEFAULTS, Tokens, losses, same, tiny_model, trainer, weights
from tests.trainer.program import wait_until

ASYNC = {"async_save": True, "save_strategy": "steps", "save_steps": 4}
GROW = [{"name": "stack_layers", "value": 2.0, "max_wait_iters": 6, "trigger_loss": 0}]


class Does(TrainerCallback):
    """Calls something with the number of each step that ends, and notes which steps it is told are saved."""

    def __init__(self, action: Callable[[int], None] = lambda step: None) -> None:
        self.action = action
        self.saved: list[int] = []
        self.seen: list[bool] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.action(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved.append(state.global_step)
        self.seen.append((Path(args.output_dir) / f"checkpoint-{state.global_step}").is_dir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(run: MorphingTrainer) -> list[str]:
    return [path.name for path in checkpoints(run.run_folder)]


# ---- The same files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "adapters", "analysed"])
def test_a_copy_is_written_as_its_original(tmp_path: Path, kind: str) -> None:
    """Also when the run has gone on in the meantime: a copy shares nothing that training changes."""
    kept: list[Snapshot] = []

    def take(step: int) -> None:
        if step != 2:
            return
        state = run._state_now()
        for copied, folder in ((False, tmp_path / "original"), (True, None)):
            snapshot = run._snapshot(state, None, copied=copied)
            assert snapshot is not None
            if folder is not None:
                folder.mkdir()
                write(snapshot, folder, home=tmp_path / "home")
            else:
                kept.append(snapshot)

    model = tiny_model()
    if kind == "adapters":
        ranks = LoraArguments(attn_lora_rank_divisor=4, vocab_lora_rank_divisor=4)
        model = add_adapters(model, ranks)  # type: ignore[assignment]
    analysis = {"analysis_evals": 1, "eval_steps": 1} if kind == "analysed" else {}
    run = trainer(tmp_path / "run", GROW, model, max_steps=8, callbacks=[Does(take)], **analysis)
    run.train()
    (tmp_path / "copy").mkdir()
    write(kept[0], tmp_path / "copy", home=tmp_path / "home")
    original, copy = contents(tmp_path / "original"), contents(tmp_path / "copy")
    assert {*REQUIRED, "training_args.bin"} <= original.keys()
    assert ("adapter_model.safetensors" in original) == (kind == "adapters")
    assert ("analysis.safetensors" in original) == (kind == "analysed")
    assert [name for name in original if original[name] != copy.get(name)] == []
    assert original.keys() == copy.keys()


@pytest.mark.parametrize("beside", [False, True])
def test_the_files_are_those_of_plain_trainer(tmp_path: Path, beside: bool) -> None:
    """To the byte, where both save the same; with one's own optimizer, so that param groups are equal."""

    def optimizer(model: Any) -> Any:
        return torch.optim.AdamW(model.parameters(), lr=1e-2), None

    model, options = tiny_model(resid_pdrop=0.1), {**DEFAULTS, "save_strategy": "steps", "save_steps": 6}
    theirs = Trainer(
        model,
        TrainingArguments(str(tmp_path / "a"), logging_nan_inf_filter=False, **options),
        train_dataset=Tokens(),
        eval_dataset=Tokens(20, seed=2),
        optimizers=optimizer(model),
    )
    theirs.train()
    model = tiny_model(resid_pdrop=0.1)
    ours = MorphingTrainer(
        model,
        trainer(tmp_path / "b", async_save=beside, save_strategy="steps", save_steps=6).args,
        train_dataset=Tokens(),
        eval_dataset=Tokens(20, seed=2),
        optimizers=optimizer(model),
    )
    ours.train()
    left, right = contents(tmp_path / "a" / "checkpoint-6"), contents(tmp_path / "b" / "checkpoint-6")
    assert left.keys() <= right.keys()
    assert {name for name in left if left[name] != right[name]} == {"training_args.bin", "trainer_state.json"}
    assert losses(ours) == losses(theirs)  # type: ignore[arg-type]


# ---- The same run ---------------------------------------------------------------------------------------------------


def test_a_run_that_saves_beside_training(tmp_path: Path) -> None:
    """Weights, losses and checkpoints are those of one that waits; each checkpoint resumes to the same end."""
    waiting = trainer(tmp_path / "a", GROW, **{**ASYNC, "async_save": False})
    waiting.train()
    told = Does()
    run = trainer(tmp_path / "b", GROW, callbacks=[told], **ASYNC)
    run.train()
    assert names(run) == names(waiting) == ["checkpoint-12", "checkpoint-8", "checkpoint-4"]
    assert losses(run) == losses(waiting)
    assert same(weights(run), weights(waiting))
    assert told.saved == [4, 8, 12]
    assert all(told.seen)
    for step in (4, 8):
        verify(run.run_folder / f"checkpoint-{step}", REQUIRED)
        again = trainer(tmp_path / "b", GROW, **ASYNC)
        again.train(str(run.run_folder / f"checkpoint-{step}"))
        assert same(weights(again), weights(waiting))


def test_training_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes its time, from the save at step 4 to step 6: steps go on; the callbacks hear of it after."""
    ready = threading.Event()
    publish, thread = saving.publish, []

    def slow(staging: Path, final: Path) -> None:
        thread.append(threading.current_thread())
        assert ready.wait(20)
        publish(staging, final)

    def watch(step: int) -> None:
        progress.append((step, names(run), list(told.saved)))
        if step == 6:
            ready.set()
            wait_until(lambda: not run._background.busy)

    progress: list[tuple[int, list[str], list[int]]] = []
    told = Does(watch)
    monkeypatch.setattr(saving, "publish", slow)
    run = trainer(tmp_path, callbacks=[told], **{**ASYNC, "save_steps": 4, "max_steps": 9})
    run.train()
    assert progress[4:8] == [(5, [], []), (6, [], []), (7, ["checkpoint-4"], []), (8, ["checkpoint-4"], [4])]
    assert told.saved == [4, 8, 9]
    assert threading.main_thread() not in thread


def test_the_next_save_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    publish = saving.publish

    def slow(staging: Path, final: Path) -> None:
        order.append(f"begins {final.name}")
        time.sleep(0.1)
        publish(staging, final)
        order.append(f"ends {final.name}")

    monkeypatch.setattr(saving, "publish", slow)
    told = Does()
    run = trainer(tmp_path, callbacks=[told], **{**ASYNC, "save_steps": 1, "max_steps": 3})
    run.train()
    assert order == [f"{what} checkpoint-{step}" for step in (1, 2, 3) for what in ("begins", "ends")]
    assert told.saved == [1, 2, 3]
    assert all(told.seen)


def test_the_best_model_is_loaded_when_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"eval_steps": 4, "load_best_model_at_end": True, "max_steps": 8}
    publish = saving.publish

    def slow(staging: Path, final: Path) -> None:
        time.sleep(0.3)
        publish(staging, final)

    monkeypatch.setattr(saving, "publish", slow)
    run = trainer(tmp_path, **{**ASYNC, **options})
    run.train()
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-8")


# ---- Failures -------------------------------------------------------------------------------------------------------


def failing_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = saving.write_manifest

    def write_manifest(folder: Path) -> Path:
        if f"checkpoint-{step}-" in folder.name:
            raise OSError(28, "No space left on device")
        return whole(folder)

    monkeypatch.setattr(saving, "write_manifest", write_manifest)


@pytest.mark.parametrize("step", [8, 12])
def test_a_full_disk_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Step 12 is the last: the end of the run finds it out. Step 8: a step after it, at the latest the next save."""
    failing_at(step, monkeypatch)
    reached: list[int] = []
    run = trainer(tmp_path, callbacks=[Does(reached.append)], **ASYNC)
    with pytest.raises(StorageError, match=f"step {step}: .*No space left.*checkpoint-{step - 4} is there"):
        run.train()
    assert step <= reached[-1] <= 12
    assert names(run) == [f"checkpoint-{each}" for each in range(step - 4, 0, -4)]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".morph")] == []
    monkeypatch.undo()
    again = trainer(tmp_path, **ASYNC)
    again.train(True)
    whole = trainer(tmp_path / "whole")
    whole.train()
    assert same(weights(again), weights(whole))


def test_a_best_checkpoint_that_failed_is_not_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_at(8, monkeypatch)
    run = trainer(tmp_path, eval_steps=4, metric_for_best_model="eval_loss", **ASYNC)
    with pytest.raises(StorageError):
        run.train()
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")


def test_a_run_that_fails_waits_for_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish, held = saving.publish, []

    def slow(staging: Path, final: Path) -> None:
        time.sleep(0.3)
        held.append(run._lock is not None)
        publish(staging, final)

    def fail(step: int) -> None:
        if step == 5:
            raise RuntimeError("something else")

    monkeypatch.setattr(saving, "publish", slow)
    run = trainer(tmp_path, callbacks=[Does(fail)], **ASYNC)
    with pytest.raises(RuntimeError, match="something else"):
        run.train()
    assert names(run) == ["checkpoint-4"]
    assert held == [True]


def test_who_leaves_at_once_leaves_the_folder_locked_until_the_write_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, publish = threading.Event(), saving.publish

    def slow(staging: Path, final: Path) -> None:
        assert ready.wait(20)
        publish(staging, final)

    def leave(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(saving, "publish", slow)
    run = trainer(tmp_path, callbacks=[Does(leave)], **ASYNC)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert names(run) == []
    again = trainer(tmp_path, **ASYNC)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        again.train(True)
    with pytest.raises(ValueError, match="another process is training"):
        trainer(tmp_path, overwrite_output_dir=True).train()
    ready.set()
    wait_until(lambda: not any(thread.name.endswith("checkpoint") for thread in threading.enumerate()))
    trainer(tmp_path, **ASYNC).train(True)


def test_without_room_for_a_copy_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(beside, "system_memory", lambda: Amount(99, 100))
    monkeypatch.setattr(Background, "start", lambda *_: pytest.fail("written beside the training"))
    run = trainer(tmp_path, **{**ASYNC, "max_steps": 4})
    with caplog.at_level(logging.WARNING):
        run.train()
    assert names(run) == ["checkpoint-4"]
    assert "no room for a copy of the run's state" in caplog.text


def test_an_emergency_copies_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is short then; the checkpoint that was being written is waited for first."""
    publish, threads = saving.publish, []

    def noted(staging: Path, final: Path) -> None:
        threads.append((final.name, threading.current_thread() is threading.main_thread()))
        publish(staging, final)

    monkeypatch.setattr(saving, "publish", noted)

    def press(step: int) -> None:
        assert run.session is not None
        run.session.is_pressed = lambda: step == 4

    run = trainer(tmp_path, callbacks=[Does(press)], **{**ASYNC, "max_steps": 6})
    run.train()
    assert threads == [("checkpoint-4", False), ("checkpoint-5", True), ("checkpoint-6", False)]


@pytest.mark.gpu
def test_copies_from_a_device_arrive(tmp_path: Path) -> None:
    """They are on their way while the next steps change their originals."""
    copier, before = Copier(), torch.randn(1 << 24, device="cuda")
    expected = before.cpu()
    copy = copier.tree({"a": [before]})
    before.zero_()
    arrived = copier.recorded()
    assert arrived is not None
    arrived.synchronize()
    assert copy["a"][0].is_pinned()
    assert torch.equal(copy["a"][0], expected)
    waiting, beside = (
        trainer(tmp_path / name, GROW, use_cpu=False, **{**ASYNC, "async_save": name == "b"}) for name in "ab"
    )
    waiting.train()
    beside.train()
    for name in names(waiting):
        left, right = (load_file(run.run_folder / name / "model.safetensors") for run in (waiting, beside))
        assert same(left, right)


def test_copies_keep_what_is_shared() -> None:
    """And the structure, so that a file of them is the same."""
    tensor, other = torch.arange(6.0).view(2, 3).t(), torch.ones(2, requires_grad=True)
    groups = [{"betas": (0.9, 0.99), "params": [0]}]
    tree = {"state": {0: {"step": tensor, "again": tensor}}, "groups": groups, "o": other}
    copier = Copier()
    copy = copier.tree(tree)
    assert copy["state"][0]["step"] is copy["state"][0]["again"]
    assert copy["state"][0]["step"].stride() == tensor.stride()
    assert not copy["o"].requires_grad
    assert copy["groups"] == tree["groups"]
    tensor.zero_()
    assert copy["state"][0]["step"].sum() == 15
    assert copier.recorded() is None


def test_copies_of_passing_tensors() -> None:
    """An original that is gone gives its id to the next one."""
    copier = Copier()
    copies = [copier.tensor(torch.full((2,), float(number))) for number in range(50)]
    assert [float(copy[0]) for copy in copies] == list(range(50))
