"""`morph push` with a Hub: finished and interrupted runs, twice, private, on a branch; and what it says if it fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from morphing_trainer import LoraArguments
from tests.hub.conftest import WRITES
from tests.hub.program import Run, command, load, train
from tests.hub.server import Fault, HubServer
from tests.hub.test_training import ADAPTERS, PLAIN, logits, newest
from tests.hub.warm import Done, Warm
from tests.trainer.common import entry

GROWS: list[dict[str, Any]] = [entry("stack_layers", 2, 3), entry("widen_mlp", 2, 2)]
ALONE = {"push_to_hub": False}


@pytest.fixture(scope="module")
def made(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, one without its last model, and one with adapters."""
    home = tmp_path_factory.mktemp("runs")
    lora = LoraArguments(lora_r=2)
    runs = [
        Run(home / "whole", GROWS, ALONE),
        Run(home / "cut", GROWS, ALONE, then=""),
        Run(home / "lora", [], {**ALONE, "save_merged": False}, lora=lora, then=""),
    ]
    for run in runs:
        done = warm.run(train, run)
        assert done.code == 0, done.said
    shutil.rmtree(home / "cut/checkpoint-12")
    return home


def push(warm: Warm, *argv: str, token: str | None = WRITES, code: int = 0) -> Done:
    done = warm.run(command, "push", *argv, HF_TOKEN=token)
    assert done.code == code, done.said
    assert "Traceback" not in done.said and "hf_" not in done.said
    return done


def test_a_finished_run(made: Path, hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    told = json.loads(push(warm, str(made / "whole"), "--repo_id", "first", "--json").said)
    commit = newest(hub, "me/first")
    assert (told["repo"], told["commit"], told["changed"]) == ("me/first", commit.sha, True)
    assert set(told["files"]) == set(commit.files) - {".gitattributes"} and set(commit.files) == PLAIN
    found = logits(warm, tmp_path / "out.json", "me/first")
    expected = json.loads((made / "whole.json").read_text())["logits"]
    assert torch.equal(found["me/first"], torch.tensor(expected))
    sent = len(hub.asked("PUT /lfs"))
    again = push(warm, str(made / "whole"), "--repo_id", "first")
    assert "nothing to push: me/first holds all of it already" in again.said
    assert newest(hub, "me/first") is commit and len(hub.asked("PUT /lfs")) == sent


def test_an_interrupted_run_is_its_newest_checkpoint(made: Path, hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    said = push(warm, str(made / "cut"), "--repo_id", "club/cut", "--private", "--message", "Half of it").said
    assert "pushed to club/cut" in said
    commit = newest(hub, "club/cut")
    assert commit.title == "Half of it" and hub.store.repositories["club/cut"].private and set(commit.files) == PLAIN
    assert "after step 8" in commit.files["README.md"].content.decode()
    push(warm, str(made / "cut/checkpoint-4"), "--repo_id", "club/cut", "--revision", "early")
    early = newest(hub, "club/cut", "early")
    assert "after step 4" in early.files["README.md"].content.decode() and early.title == "The model at step 4"
    assert newest(hub, "club/cut") is commit


def test_adapters_of_a_checkpoint(made: Path, hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    """As the run was to save them: with their base."""
    push(warm, str(made / "lora"), "--repo_id", "beside")
    assert set(newest(hub, "me/beside").files) - {"schedule.yaml"} == PLAIN - {"schedule.yaml"} | ADAPTERS
    expected = torch.tensor(json.loads((made / "lora.json").read_text())["logits"])
    found = logits(warm, tmp_path / "out.json", "me/beside", work=load)
    torch.testing.assert_close(found["me/beside"], expected, rtol=1e-5, atol=1e-6)


def test_what_goes_wrong(made: Path, hub: HubServer, warm: Warm) -> None:
    run = str(made / "whole")
    said = push(warm, run, token=None, code=2).said
    assert said.startswith("error: morph push: there is no token. Log in by") and "push_to_hub" not in said
    assert "is not me's to write to" in push(warm, run, "--repo_id", "other/x", code=2).said
    assert "--repo_id: 'a/b/c' cannot be" in push(warm, run, "--repo_id", "a/b/c", code=2).said
    hub.store.create("me/open")
    assert "is public" in push(warm, run, "--repo_id", "open", "--private", code=2).said
    hub.faults.append(Fault("/commit/", status=413))
    said = push(warm, run, "--repo_id", "big", code=1).said
    assert said.startswith("error: me/big: it is more than the Hub takes (413") and "try again later" in said
    hub.faults[:] = [Fault("create", status=500)]
    assert "(500" in push(warm, run, "--repo_id", "later", code=1).said
