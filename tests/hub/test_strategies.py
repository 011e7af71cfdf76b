"""What is pushed when: `hub_strategy`, saves that are passed over or wait, a slow Hub, a run that is told to stop."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from morphing_trainer.checkpoint import verify
from tests.hub.conftest import WRITES
from tests.hub.program import Run, train
from tests.hub.server import Fault, HubServer
from tests.hub.test_training import PLAIN, newest, trained
from tests.hub.warm import Warm
from tests.trainer.common import entry

GROWS: list[dict[str, Any]] = [entry("stack_layers", 2, 3), entry("widen_mlp", 2, 2)]


def test_saves_that_were_passed_over_are_not_lost(hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    """Nor is a save that waits for its turn pushed with the one before it, which would leave it without its files."""
    for name, always in (("passed", False), ("waits", True)):
        hub.faults[:] = [Fault("/commit/", times=1, seconds=1.0)]
        options = {"hub_strategy": "all_checkpoints", "hub_always_push": always, "save_steps": 4}
        done = trained(warm, Run(tmp_path / name, [], options, then=""))
        assert "not pushed" not in done.said
        history = hub.store.repositories[f"me/{name}"].history()
        titles = [f"Training in progress, step {step}" for step in ((12, 8, 4) if always else (12, 4))]
        assert [commit.title for commit in history] == [*titles, "initial commit"]
        folders = {path.partition("/")[0] for path in history[0].files if "/" in path}
        assert folders == {"checkpoint-4", "checkpoint-8", "checkpoint-12"}


def test_the_last_push_is_tried_again_at_the_end(hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    hub.faults.append(Fault("/commit/", times=3, status=503))
    done = trained(warm, Run(tmp_path / "again", [], {"save_steps": 6, "max_steps": 6}, then=""))
    assert "step 6: not pushed to the Hub: me/again: the Hub does not answer as it should (503" in done.said
    titles = [commit.title for commit in hub.store.repositories["me/again"].history()]
    assert titles == ["Training in progress, step 6", "initial commit"]


@pytest.mark.parametrize("strategy", [pytest.param("end", marks=pytest.mark.long), "checkpoint", "all_checkpoints"])
def test_what_is_pushed_follows_hub_strategy(strategy: str, hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    name = strategy.replace("_", "-")
    options = {"hub_strategy": strategy, "hub_always_push": strategy != "end", "hub_model_id": f"club/{name}"}
    run = Run(tmp_path / name, GROWS, options)
    trained(warm, run)
    titles = [commit.title for commit in hub.store.repositories[f"club/{name}"].history()]
    during = [f"Training in progress, step {step}" for step in (12, 8, 4)] if strategy != "end" else []
    assert titles == ["End of training", *during, "initial commit"]
    files = newest(hub, f"club/{name}").files
    folders = {path.partition("/")[0] for path in files if "/" in path}
    steps = {"checkpoint-4", "checkpoint-8", "checkpoint-12"}
    assert folders == {"end": set(), "checkpoint": {"last-checkpoint"}, "all_checkpoints": steps}[strategy]
    assert {path for path in files if "/" not in path} == PLAIN
    for folder in folders:  # whole, as they were on disk
        for path, blob in files.items():
            if path.startswith(f"{folder}/"):
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / path).write_bytes(blob.content)
        verify(tmp_path / folder)
        assert (tmp_path / folder / "optimizer.pt").is_file()
        assert b"hf_" not in (tmp_path / folder / "training_args.bin").read_bytes()
    assert not list(run.folder.glob(".morph-push*"))


def test_checkpoints_that_were_not_pushed_go_along_later(hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    hub.faults.append(Fault("/commit/", times=3, status=500))
    options = {"hub_strategy": "all_checkpoints", "hub_always_push": True, "save_total_limit": 2, "save_steps": 3}
    trained(warm, Run(tmp_path / "owed", GROWS, options, then=""))
    files = newest(hub, "me/owed").files
    assert {path.partition("/")[0] for path in files if "/" in path} == {f"checkpoint-{n}" for n in (3, 6, 9, 12)}
    assert not list((tmp_path / "owed").glob(".morph-push*"))


def test_a_slow_hub_keeps_nobody_waiting(hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    """While a push goes on the next saves are passed over; the end waits for it."""
    hub.faults.append(Fault("/commit/", times=1, seconds=1.5))
    trained(warm, Run(tmp_path / "slow", [], {"save_steps": 2}, then=""))
    (only, _) = hub.store.repositories["me/slow"].history()
    assert only.title == "Training in progress, step 2"


def test_a_run_that_is_told_to_stop_does_not_wait_long(hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    hub.faults.append(Fault("/commit/", seconds=30))
    started = time.monotonic()
    done = warm.run(train, Run(tmp_path / "told", [], {"save_steps": 2}, then="", grace=0.3, stops=5), HF_TOKEN=WRITES)
    assert done.code == 128 + 15 and time.monotonic() - started < 20
    assert "is not waited for, as the run was told to stop. Push it later by: morph push" in done.said
    assert list((tmp_path / "told").glob("checkpoint-[56]"))


def test_checkpoints_that_are_written_beside_the_training(hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    run = Run(tmp_path / "beside", GROWS, {"async_save": True, "hub_always_push": True, "save_total_limit": 2})
    trained(warm, run)
    titles = [commit.title for commit in hub.store.repositories["me/beside"].history()]
    assert titles == ["End of training", *(f"Training in progress, step {n}" for n in (12, 8, 4)), "initial commit"]


@pytest.mark.long
def test_a_checkpoint_of_the_hub_is_gone_on_from_exactly(hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    """On another machine, as it were: the folder of the run is gone."""
    options = {"lr_scheduler_type": "constant", "hub_always_push": True, "hub_strategy": "checkpoint"}
    whole = Run(tmp_path / "straight", GROWS, {**options, "push_to_hub": False, "max_steps": 16}, then="")
    trained(warm, whole, None)
    first = Run(tmp_path / "first", GROWS, options, then="")
    trained(warm, first)
    for path, blob in newest(hub, "me/first").files.items():
        (tmp_path / "got" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "got" / path).write_bytes(blob.content)
    shutil.rmtree(first.folder)
    more = {**options, "max_steps": 16, "hub_model_id": "first"}
    again = Run(tmp_path / "second", GROWS, more, then="", resume=str(tmp_path / "got/last-checkpoint"))
    trained(warm, again)
    ours, theirs = (load_file(each.folder.with_suffix(".safetensors")) for each in (again, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert newest(hub, "me/first").title == "Training in progress, step 16"
