"""What is refused before a step is trained: tokens, names, rights, places that hold something else."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from tests.hub.conftest import OTHER, READS, WRITES, WRONG
from tests.hub.program import END, Run, command, train
from tests.hub.server import Fault, HubServer
from tests.hub.warm import Done, Warm
from tests.trainer.common import entry

GROWS: list[dict[str, Any]] = [entry("stack_layers", 2, 3)]


def refused(warm: Warm, run: Run, token: str | None, **variables: str | None) -> str:
    """What a run says that must not begin."""
    done = warm.run(train, run, HF_TOKEN=token, **variables)
    assert done.code == 2, done.said
    assert "Traceback" not in done.said and "hf_" not in done.said, done.said
    assert not (run.folder / "journal.jsonl").exists() and "step 1/" not in done.said
    (line,) = [line for line in done.said.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    ("token", "options", "says"),
    [
        (None, {}, ["push_to_hub: there is no token", "`hf auth login`", "HF_TOKEN", "morph push RUN"]),
        (WRONG, {}, ["does not know the token", "`hf auth login`"]),
        (None, {"hub_token": WRONG}, ["does not know the token", "hub_token"]),
        (READS, {}, ["the token (of me) may read only", "settings/tokens"]),
        (WRITES, {"hub_model_id": "other/model"}, ["hub_model_id: other/model is not me's", "(403", "give me/model"]),
        (WRITES, {"hub_model_id": "library/new"}, ["library/new is not me's", "give me/new, or ask the owner"]),
        (WRITES, {"hub_model_id": "a/b/c"}, ["hub_model_id: 'a/b/c' cannot be a repository's name", "OWNER/NAME"]),
        (WRITES, {"hub_model_id": "no spaces"}, ["'no spaces' cannot be a repository's name"]),
        (WRITES, {"hub_revision": "0" * 40}, ["hub_revision: ", "is a commit", "give a branch"]),
        (WRITES, {"hub_model_id": "me/public", "hub_private_repo": True}, ["me/public is there and is public"]),
        (WRITES, {"hub_model_id": "club/notes"}, ["club/notes: holds files that are of no run", "notes.txt"]),
        (
            WRITES,
            {"hub_model_id": "club/notes", "overwrite_output_dir": True},
            ["club/notes: holds files that are of no run", "Give another repository"],
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_before_the_training(
    token: str | None, options: dict[str, Any], says: list[str], hub: HubServer, warm: Warm, tmp_path: Path
) -> None:
    if "me/public" not in hub.store.repositories:
        hub.store.create("me/public")
        hub.store.create("other/model")
        hub.store.create("club/notes", files={"notes.txt": b"mine", "model.safetensors": b"somebody's"})
    line = refused(warm, Run(tmp_path / "never", GROWS, options), token)
    assert all(each in line for each in says), line


def test_the_name_of_another_run(hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    """It stays, unless the run was told to overwrite; this run's own state is replaced by its next."""
    first = Run(tmp_path / "a" / "taken", GROWS, END)
    assert warm.run(train, first, HF_TOKEN=WRITES).code == 0
    other = Run(tmp_path / "b" / "taken", [entry("widen_mlp", 2, 3)], END)
    line = refused(warm, other, WRITES)
    assert "me/taken: holds another run, which began at 20" in line and "--overwrite_output_dir" in line
    assert len(hub.store.repositories["me/taken"].history()) == 2
    done = warm.run(command, "push", str(first.folder), "--repo_id", "taken", HF_TOKEN=WRITES)
    assert done.code == 0 and "nothing to push" in done.said, done.said
    assert len(hub.store.repositories["me/taken"].history()) == 2

    options = {**END, "overwrite_output_dir": True}
    assert warm.run(train, Run(other.folder, other.schedule, options), HF_TOKEN=WRITES).code == 0
    assert len(hub.store.repositories["me/taken"].history()) == 3
    done = warm.run(command, "push", str(first.folder), "--repo_id", "taken", HF_TOKEN=WRITES)
    assert done.code == 2 and "holds another run" in done.said and "--overwrite (of morph push)" in done.said
    done = warm.run(command, "push", str(first.folder), "--repo_id", "taken", "--overwrite", HF_TOKEN=WRITES)
    assert done.code == 0 and len(hub.store.repositories["me/taken"].history()) == 4


def test_a_hub_that_is_not_there(hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    """A new run is refused; one that was begun goes on, and pushes when the Hub is back."""
    run = Run(tmp_path / "resumed", GROWS, {"hub_strategy": "every_save"}, then="")
    hub.faults.append(Fault("whoami", status=503))
    line = refused(warm, run, WRITES)
    assert "cannot be pushed to" in line and "(503" in line
    hub.faults.clear()
    assert warm.run(train, run, HF_TOKEN=WRITES).code == 0
    hub.faults.append(Fault("whoami", times=1, status=503))
    options = {"hub_strategy": "every_save", "max_steps": 16}
    done = warm.run(train, Run(run.folder, GROWS, options, then="", resume=True), HF_TOKEN=WRITES)
    assert done.code == 0, done.said
    assert "The run goes on; what it saves is pushed when the Hub can be reached." in done.said
    assert hub.store.repositories["me/resumed"].history()[0].title == "Training in progress, step 16"


def test_offline(warm: Warm, hub: HubServer, tmp_path: Path) -> None:
    """Nothing is asked in offline mode, which the client knows by its environment when it is imported."""
    from morphing_trainer.errors import HubError
    from morphing_trainer.hub.account import Wish, arrived

    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set.*morph push RUN") as caught:
        arrived(Wish("me/x", token=WRITES))
    assert not caught.value.passing and not hub.requests


def unreachable(repo: str) -> None:
    import huggingface_hub.constants as constants

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        constants.ENDPOINT = f"http://127.0.0.1:{free.getsockname()[1]}"
    from morphing_trainer.hub.account import Wish, arrived

    arrived(Wish(repo))


def test_nobody_answers(warm: Warm, hub: HubServer) -> None:
    done: Done = warm.run(unreachable, "me/x", HF_TOKEN=OTHER)
    assert "HubError: push_to_hub: the Hub cannot be reached (http://127.0.0.1" in done.said, done.said
