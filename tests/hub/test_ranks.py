"""Two processes, of which one talks to the Hub: the other neither pushes nor waits, and both are refused together."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from morphing_trainer.sharding.files import FOLDER
from tests.hub.conftest import WRITES, WRONG
from tests.hub.program import Run, load_as_anybody, train
from tests.hub.server import Fault, HubServer
from tests.hub.warm import Done, Warm
from tests.trainer.common import entry

GROWS: list[dict[str, Any]] = [entry("stack_layers", 2, 3)]


def both(warm: Warm, run: Run, token: str) -> list[Done]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "HF_TOKEN": token}
    waits = [warm.start(train, run, **common, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
    return [wait(60) for wait in waits]


def test_one_of_two_pushes(hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    """The first push fails; the other rank goes on, and the end is pushed."""
    options = {"ddp_backend": "gloo", "hub_always_push": True}
    hub.faults.append(Fault("/commit/", times=3, status=503))
    run = Run(tmp_path / "two", GROWS, options)
    done = both(warm, run, WRITES)
    assert [each.code for each in done] == [0, 0], done[0].said + done[1].said
    titles = [commit.title for commit in hub.store.repositories["me/two"].history()]
    assert titles == ["End of training", *(f"Training in progress, step {n}" for n in (12, 8)), "initial commit"]
    assert "not pushed to the Hub" in done[0].said and "Hub" not in done[1].said
    assert warm.run(load_as_anybody, tmp_path / "out.json", "me/two").code == 0
    found = torch.tensor(json.loads((tmp_path / "out.json").read_text())["me/two"])
    assert torch.equal(found, torch.tensor(run.results()["logits"]))
    assert load_file(run.folder.with_suffix(".safetensors"))


def test_both_are_refused(hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    done = both(warm, Run(tmp_path / "no", GROWS, {"ddp_backend": "gloo"}), WRONG)
    assert [each.code for each in done] == [2, 1]
    assert "does not know the token" in done[0].said
    assert "rank 0 failed, so all ranks stop: HubError: push_to_hub: " in done[1].said
    assert not any("hf_" in each.said for each in done)


@pytest.mark.long
def test_a_model_that_is_divided(hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    """Under FSDP2 the model is put together first; what is on the Hub is what one process would have pushed."""
    options = {"ddp_backend": "gloo", "hub_always_push": True}
    run = Run(tmp_path / "divided", GROWS, options, divided=True)
    done = both(warm, run, WRITES)
    assert [each.code for each in done] == [0, 0], done[0].said + done[1].said
    assert list(run.folder.glob(f"checkpoint-*/{FOLDER}")), "each rank has saved its rows"
    whole = Run(tmp_path / "undivided", GROWS, options)
    assert [each.code for each in both(warm, whole, WRITES)] == [0, 0]
    assert warm.run(load_as_anybody, tmp_path / "out.json", "me/divided").code == 0
    found = torch.tensor(json.loads((tmp_path / "out.json").read_text())["me/divided"])
    torch.testing.assert_close(found, torch.tensor(whole.results()["logits"]), rtol=1e-4, atol=1e-5)
    assert len(hub.store.repositories["me/divided"].history()) == 5
